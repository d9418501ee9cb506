"""Lookups whose arithmetic on ids stays inside 31 bits, for runtimes that cut int64 to int32.

OpenVINO computes int64 as int32, and Div and Mod of int32 in float32: quotients beyond 2^24 are off by a few,
while sums, differences and products are exact and wrap around. It folds what depends on constants alone
before that, in true int64. Hence the three rules of this form:

1. The hash of a tile number is a sum of table entries, a * (1000 * high) mod p and a * low mod p, and of a
   part that depends on the column only. Tables and part are made of constants.
2. A sum modulo p is x + y - p, with p added where that is negative: it never leaves (-2^31, 2^31).
3. A remainder is taken twice, so that a quotient that is off by a few does no harm.

It gives the bits of docs/mapping.md for every record that `is_narrow` accepts.
"""

from __future__ import annotations

from roast_export.mapping import Element, Hash, Mapping, Sign

EXACT = 1 << 24
"""Up to here float32 holds every integer."""


def is_narrow(mapping: Mapping) -> bool:
    """Whether the form below gives the bits of this table.

    The view must be the table, the hashed sums must not wrap around, and of two levels only the second may
    depend on the row.
    """
    rows = mapping.origin[0] % mapping.tile[0] + mapping.shape[0]
    upper, lower = (mapping.hash1, mapping.hash2) if mapping.hash2 != Hash() else (Hash(), mapping.hash1)
    return (
        mapping.element is Element.HASH
        and mapping.sign is not Sign.MT19937
        and not mapping.transposed
        and mapping.matrix == mapping.shape
        and rows < EXACT
        and upper.a == 0
        and all(_small(numbers, mapping) for numbers in (upper, lower, mapping.sign_hash))
    )


def _small(numbers: Hash, mapping: Mapping) -> bool:
    """Whether a hash stays below 2^31 and its sum below 2^63 wherever the table is."""
    last = [(o + n - 1) // t for o, n, t in zip(mapping.origin, mapping.matrix, mapping.tile, strict=True)]
    i, j = last[0] + 1000, last[1]  # the last table reaches past the last row
    largest = abs(numbers.a) * i + (abs(numbers.b) + abs(numbers.q) * j) * j + abs(numbers.g)
    return numbers.p < 1 << 31 and largest < 1 << 63


def _raised(value: str, modulus: str, out: str) -> str:
    """`value`, of [-modulus, modulus), with the modulus added where it is negative."""
    return f"""
        {out}_below = Less ({value}, zero)
        {out}_below64 = Cast <to = 7> ({out}_below)
        {out}_more = Mul ({out}_below64, {modulus})
        {out} = Add ({value}, {out}_more)"""


def _remainder(value: str, modulus: str, out: str) -> str:
    """`value` mod `modulus`, where a quotient may be off by a few: value of [0, 2^31), modulus up to 2^30."""
    return f"""
        {out}_q = Div ({value}, {modulus})
        {out}_qm = Mul ({out}_q, {modulus})
        {out}_near = Sub ({value}, {out}_qm)
        {out}_q2 = Div ({out}_near, {modulus})
        {out}_q2m = Mul ({out}_q2, {modulus})
        {out}_rest = Sub ({out}_near, {out}_q2m)""" + _raised(f"{out}_rest", modulus, out)


def _column_part(out: str) -> str:
    """(b*j + q*j*j + g) mod p."""
    return f"""
        {out}_qj = Mul (j, {out}_q)
        {out}_bqj = Add ({out}_b, {out}_qj)
        {out}_bj = Mul (j, {out}_bqj)
        {out}_sum = Add ({out}_bj, {out}_g)
        {out}_column = Mod ({out}_sum, {out}_p)"""


def _split(name: str, out: str) -> str:
    return f"""
        {out}_p, {out}_a, {out}_b, {out}_q, {out}_g = Split <axis = 0> ({name}, ones5)"""


def _hash(name: str, out: str) -> str:
    """The hash of every row and column, by tables."""
    return (
        _split(name, out)
        + _column_part(out)
        + f"""
        {out}_column_less = Sub ({out}_column, {out}_p)
        {out}_low_sums = Mul (lows, {out}_a)
        {out}_lows = Mod ({out}_low_sums, {out}_p)
        {out}_high_sums = Mul (highs, {out}_a)
        {out}_high_mod = Mod ({out}_high_sums, {out}_p)
        {out}_highs = Sub ({out}_high_mod, {out}_p)
        {out}_low = Gather <axis = 0> ({out}_lows, i_low)
        {out}_high = Gather <axis = 0> ({out}_highs, i_high)
        {out}_row_sum = Add ({out}_low, {out}_high)"""
        + _raised(f"{out}_row_sum", f"{out}_p", f"{out}_row")
        + f"""
        {out}_both = Add ({out}_row, {out}_column_less)"""
        + _raised(f"{out}_both", f"{out}_p", out)
    )


# An id outside the table makes `hit` 1, which is outside the one-element vector: the runtime refuses.
CHECKED_IDS = """
        rows1, dim1 = Split <axis = 0> (shape, ones2)
        below = Less (ids, zero)
        above = GreaterOrEqual (ids, rows1)
        outside = Or (below, above)
        outside64 = Cast <to = 7> (outside)
        n_outside = ReduceSum <keepdims = 0> (outside64)
        hit = Min (n_outside, one)
        checked = Gather <axis = 0> (zeros1, hit)
        ids_checked = Add (ids, checked)
        column = Constant <value_ints = [-1, 1]> ()
        ids_column = Reshape (ids_checked, column)"""

NARROW = (
    CHECKED_IDS
    + """
        dim = Squeeze (dim1)
        run = Range (zero, dim, unit)
        origin_r, origin_c = Split <axis = 0> (origin, ones2)
        c = Add (run, origin_c)
        j = Div (c, tile_c)
        c_inner = Mod (c, tile_c)
        first_i = Div (origin_r, tile_r)
        begin_r = Mod (origin_r, tile_r)
        place = Add (ids_column, begin_r)
        i = Div (place, tile_r)
        i_rows = Mul (i, tile_r)
        r_inner = Sub (place, i_rows)
        thousand = Constant <value_int = 1000> ()
        i_high = Div (i, thousand)
        i_thousands = Mul (i_high, thousand)
        i_low = Sub (i, i_thousands)
        lows = Range (zero, thousand, one)
        end_place = Add (rows1, begin_r)
        end_i = Div (end_place, tile_r)
        last_high1 = Div (end_i, thousand)
        last_high = Squeeze (last_high1)
        stop_high = Add (last_high, one)
        high_numbers = Range (zero, stop_high, one)
        high_tiles = Mul (high_numbers, thousand)
        highs = Add (high_tiles, first_i)"""
    + _split("hash1", "h1")
    + _column_part("h1")
    + """
        h2_p, h2_rest = Split <axis = 0> (hash2, one_and_four)
        two_levels = Greater (h2_p, one)
        lower = Where (two_levels, hash2, hash1)
        h1_level = Mul (h1_column, h1_p)
        h1_used = Where (two_levels, h1_level, zero)
        h1_mod = Mod (h1_used, range)
        h1_less = Sub (h1_mod, range)"""
    + _hash("lower", "h")
    + _remainder("h", "range", "h_range")
    + """
        h_levels = Add (h_range, h1_less)"""
    + _raised("h_levels", "range", "aligned")
    + _hash("sign_hash", "s")
    + _remainder("s", "two", "s_bit")
    + """
        twice_bit = Mul (s_bit, two)
        sign = Sub (one, twice_bit)
        sign_float = Cast <to = 1> (sign)
        factor = Mul (sign_float, scale)
        align_units = Div (align, unit)
        start_unit = Mul (aligned, align_units)
        row_units = Div (tile_c, unit)
        r_units = Mul (r_inner, row_units)
        c_units = Div (c_inner, unit)
        inner_units = Add (r_units, c_units)
        unit_place = Add (start_unit, inner_units)
        n_units = Div (n_memory, unit)
        unit_less = Sub (unit_place, n_units)"""
    + _raised("unit_less", "n_units", "slot_unit64")
    + """
        slot_unit = Cast <to = 6> (slot_unit64)
        units = Reshape (memory32, row_of_units)
        plain = Gather <axis = 0> (units, slot_unit)
        factors = Unsqueeze (factor, twos1)
        scaled = Mul (plain, factors)
        ids_shape = Shape (ids)
        rows_shape = Concat <axis = 0> (ids_shape, dim1)
        result = Reshape <allowzero = 1> (scaled, rows_shape)"""
)
"""The body of RoastEmbedding, behind the constants of onnx_ops.py."""
