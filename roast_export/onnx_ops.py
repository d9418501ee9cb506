"""The mapping in ONNX: schemas, attributes and standard-op functions of docs/operators.md.

The functions use only operators and types that stock phone and browser packages have: no bit
operations, no float64, Mod with fmod = 0 (floored, exact on int64). Index arithmetic is done once
per tile and then per run of `unit` elements, in int32, so that folding or running it stays cheap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx
import onnx.defs
import onnx.parser

from roast_export import onnx_lookup
from roast_export.errors import ExportError, MappingError
from roast_export.mapping import Element, Hash, Mapping, Sign, check_scale

DOMAIN = "ai.roast"
DOMAIN_VERSION = 1
LOWEST_OPSET = 18
PERM, PERM_TRANSPOSED = [0, 2, 1, 3], [1, 3, 0, 2]

ATTRIBUTES = {
    "shape": "INTS",
    "view": "INTS",
    "perm": "INTS",
    "tile": "INTS",
    "origin": "INTS",
    "hash1": "INTS",
    "hash2": "INTS",
    "sign_hash": "INTS",
    "range": "INT",
    "align": "INT",
    "n_memory": "INT",
    "unit": "INT",
    "scale": "FLOAT",
}
_LENGTHS = {"view": 2, "perm": 4, "tile": 2, "origin": 2, "hash1": 5, "hash2": 5, "sign_hash": 5}
DRAWN_ATTRIBUTES = dict.fromkeys(("element", "seed", "sign", "sign_seed", "sign_skip"), "INT")

GATHERS = ("RoastGather", "RoastGatherFolded", "RoastGatherSigned", "RoastGatherDrawn")
LINEARS = ("RoastLinear", "RoastLinearBias", "RoastLinearDrawn", "RoastLinearBiasDrawn")
EMBEDDINGS = ("RoastEmbedding", "RoastEmbeddingDrawn")
OPERATORS = (*GATHERS, *EMBEDDINGS, *LINEARS)


def needs_stream(mapping: Mapping) -> bool:
    """Whether map or signs come from MT19937, which has no form in standard ops."""
    return mapping.element is not Element.HASH or mapping.sign is Sign.MT19937


def is_drawn(operator: str) -> bool:
    """Whether an operator takes maps and signs from MT19937, and so runs with the library only."""
    return operator.endswith("Drawn")


def attributes(mapping: Mapping, scale: float, operator: str) -> dict[str, Any]:
    """Every attribute of one node, as docs/operators.md lists them."""
    found: dict[str, Any] = {
        "shape": list(mapping.shape),
        "view": list(mapping.view),
        "perm": PERM_TRANSPOSED if mapping.transposed else PERM,
        "tile": list(mapping.tile),
        "origin": list(mapping.origin),
        "hash1": mapping.hash1.to_list(),
        "hash2": mapping.hash2.to_list(),
        "sign_hash": mapping.sign_hash.to_list(),
        "range": mapping.range,
        "align": mapping.align,
        "n_memory": mapping.n_memory,
        "unit": mapping.row_unit if operator in EMBEDDINGS else mapping.tile_unit,
        "scale": float(scale),
    }
    if is_drawn(operator):
        found |= {
            "element": int(mapping.element),
            "seed": mapping.seed,
            "sign": int(mapping.sign),
            "sign_seed": mapping.sign_seed,
            "sign_skip": mapping.sign_skip,
        }
    return found


def mapping_of(node: onnx.NodeProto) -> tuple[Mapping, float]:
    """The record and the scale of a node of this domain, validated.

    Raises:
        ExportError: an attribute is missing or has the wrong type or length.
        MappingError: the record breaks a rule of docs/mapping.md section 2.
    """
    for attribute in node.attribute:
        _check_attribute(node, attribute)
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    try:
        rows, cols = found["view"]
        transposed = list(found["perm"]) == PERM_TRANSPOSED
        signed = list(found["sign_hash"]) != Hash().to_list()
        mapping = Mapping(
            shape=tuple(found["shape"]),
            matrix=(cols, rows) if transposed else (rows, cols),
            transposed=transposed,
            n_memory=found["n_memory"],
            tile=tuple(found["tile"]),
            origin=tuple(found["origin"]),
            hash1=Hash(*found["hash1"]),
            hash2=Hash(*found["hash2"]),
            sign_hash=Hash(*found["sign_hash"]),
            range=found["range"],
            align=found["align"],
            element=Element(found.get("element", 0)),
            seed=found.get("seed", 0),
            sign=Sign(found.get("sign", int(Sign.TILE if signed else Sign.NONE))),
            sign_seed=found.get("sign_seed", 0),
            sign_skip=found.get("sign_skip", 0),
        )
        scale = check_scale(float(found["scale"]))
    except MappingError:
        raise
    except KeyError as error:
        raise ExportError(f"{node.op_type} {node.name!r} has no attribute {error}") from error
    except (TypeError, ValueError) as error:
        raise ExportError(f"{node.op_type} {node.name!r} has a bad attribute: {error}") from error
    return mapping, scale


def _check_attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> None:
    kind = {**ATTRIBUTES, **DRAWN_ATTRIBUTES}.get(attribute.name)
    right = kind is None or onnx.AttributeProto.AttributeType.Name(attribute.type) == kind
    right &= len(attribute.ints) == _LENGTHS.get(attribute.name, len(attribute.ints))
    right &= attribute.name != "perm" or list(attribute.ints) in (PERM, PERM_TRANSPOSED)
    if not right:
        raise ExportError(f"{node.op_type} {node.name!r} has a bad attribute: {attribute.name}")


def array_of(node: onnx.NodeProto) -> str:
    """Name of the array that a node of this domain reads."""
    return str(node.input[1 if node.op_type in LINEARS else 0])


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph and of the graphs inside its nodes: branches of If, bodies of Loop and Scan."""
    for inner in graphs_of(graph):
        yield from inner.node


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                yield from graphs_of(inner)


def layers_in(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes of this domain, wherever in the graph they are."""
    return [node for node in nodes_of(graph) if node.domain == DOMAIN]


def functions(operators: Iterable[str], opset: int, narrow: bool = False) -> list[onnx.FunctionProto]:
    """Model-local functions in standard ops for those of `operators` that have one.

    narrow: lookups that stay inside 31 bits; all their tables must be such as onnx_lookup.is_narrow accepts.
    """
    wanted = set(operators)
    if wanted & {"RoastGatherSigned", "RoastLinear", "RoastLinearBias"}:
        wanted.add("RoastGather")
    return [_parse(name, opset, narrow) for name in OPERATORS if name in wanted and name in _BODIES]


def register_schemas() -> None:
    """Make the operators known to onnx.defs, which torch's exporter asks. Idempotent."""
    for name in OPERATORS:
        if not onnx.defs.has(name, DOMAIN):
            onnx.defs.register_schema(_schema(name))


def _schema(name: str) -> onnx.defs.OpSchema:
    parameter = onnx.defs.OpSchema.FormalParameter
    inputs = [parameter("memory", "T", "The shared array, [n_memory].")]
    if name in LINEARS:
        inputs.insert(0, parameter("x", "tensor(float)", "[..., in]"))
    if name.startswith("RoastLinearBias"):
        inputs.append(parameter("bias", "tensor(float)", "[out]"))
    if name == "RoastGatherSigned":
        inputs.append(parameter("signs", "tensor(uint8)", "Packed sign bits."))
    if name in EMBEDDINGS:
        inputs.append(parameter("ids", "tensor(int64)", "Rows to read, any shape."))
    extra = DRAWN_ATTRIBUTES if is_drawn(name) else {}
    kinds = onnx.defs.OpSchema.AttrType
    return onnx.defs.OpSchema(
        name,
        DOMAIN,
        DOMAIN_VERSION,
        doc="See docs/operators.md of roast-export.",
        inputs=inputs,
        outputs=[parameter("result", "tensor(float)", "The virtual weight, rows of it, or a product.")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "Type of the array.")],
        attributes=[
            onnx.defs.OpSchema.Attribute(key, getattr(kinds, kind), "See docs/mapping.md.")
            for key, kind in {**ATTRIBUTES, **extra}.items()
        ],
    )


def _hash(name: str, out: str) -> str:
    """(a*i + b*j + q*j*j + g) mod p, with the record's coefficients `name` and tile numbers i, j."""
    return f"""
        {out}_p, {out}_a, {out}_b, {out}_q, {out}_g = Split <axis = 0> ({name}, ones5)
        {out}_ai = Mul (i, {out}_a)
        {out}_qj = Mul (j, {out}_q)
        {out}_bqj = Add ({out}_b, {out}_qj)
        {out}_bj = Mul (j, {out}_bqj)
        {out}_aibj = Add ({out}_ai, {out}_bj)
        {out}_sum = Add ({out}_aibj, {out}_g)
        {out} = Mod ({out}_sum, {out}_p)"""


_CONSTANTS = """
        zero = Constant <value_int = 0> ()
        one = Constant <value_int = 1> ()
        two = Constant <value_int = 2> ()
        zeros1 = Constant <value_ints = [0]> ()
        ones1 = Constant <value_ints = [1]> ()
        twos1 = Constant <value_ints = [2]> ()
        ones2 = Constant <value_ints = [1, 1]> ()
        one_and_four = Constant <value_ints = [1, 4]> ()
        ones5 = Constant <value_ints = [1, 1, 1, 1, 1]> ()
        minus1 = Constant <value_ints = [-1]> ()
        shape = Constant <value_ints : ints = @shape> ()
        view = Constant <value_ints : ints = @view> ()
        tile = Constant <value_ints : ints = @tile> ()
        origin = Constant <value_ints : ints = @origin> ()
        hash1 = Constant <value_ints : ints = @hash1> ()
        hash2 = Constant <value_ints : ints = @hash2> ()
        sign_hash = Constant <value_ints : ints = @sign_hash> ()
        range = Constant <value_int : int = @range> ()
        align = Constant <value_int : int = @align> ()
        n_memory = Constant <value_int : int = @n_memory> ()
        unit = Constant <value_int : int = @unit> ()
        scale = Constant <value_float : float = @scale> ()
        perm = Constant <value_ints : ints = @perm> ()
        fours1 = Constant <value_ints = [4]> ()
        order = Slice (perm, zeros1, fours1, zeros1, twos1)
        tile_r, tile_c = Split <axis = 0> (tile, ones2)
        memory32 = Cast <to = 1> (memory)
        unit1 = Reshape (unit, ones1)
        row_of_units = Concat <axis = 0> (minus1, unit1)"""

# Tile numbers i, j in; `start` and the factor scale * sign of every tile out. A product, because
# onnxruntime's Where makes +0 of -0.
_STARTS = (
    _hash("hash1", "h1")
    + _hash("hash2", "h2")
    + _hash("sign_hash", "s")
    + """
        two_levels = Greater (h2_p, one)
        level = Where (two_levels, h1_p, one)
        h1_level = Mul (h1, level)
        h = Add (h1_level, h2)
        h_range = Mod (h, range)
        start = Mul (h_range, align)
        s_bit = Mod (s, two)
        twice_bit = Mul (s_bit, two)
        sign = Sub (one, twice_bit)
        sign_float = Cast <to = 1> (sign)
        factor = Mul (sign_float, scale)"""
)

_GATHER = (
    _CONSTANTS
    + """
        first = Div (origin, tile)
        end = Add (origin, view)
        last_place = Sub (end, one)
        last = Div (last_place, tile)
        stop = Add (last, one)
        grid = Sub (stop, first)
        first_i1, first_j1 = Split <axis = 0> (first, ones2)
        stop_i1, stop_j1 = Split <axis = 0> (stop, ones2)
        first_i = Squeeze (first_i1)
        first_j = Squeeze (first_j1)
        stop_i = Squeeze (stop_i1)
        stop_j = Squeeze (stop_j1)
        i_flat = Range (first_i, stop_i, one)
        i = Unsqueeze (i_flat, ones1)
        j = Range (first_j, stop_j, one)"""
    + _STARTS
    + """
        tile_size1 = Mul (tile_r, tile_c)
        tile_size = Squeeze (tile_size1)
        last_range = Sub (range, one)
        last_start = Mul (last_range, align)
        longest = Add (last_start, tile_size1)
        beyond = Sub (longest, n_memory)
        spill = Max (beyond, zeros1)
        head = Slice (memory32, zeros1, spill)
        wrapped = Concat <axis = 0> (memory32, head)
        units = Reshape (wrapped, row_of_units)
        start_unit64 = Div (start, unit)
        start_unit = Cast <to = 6> (start_unit64)
        start_units = Unsqueeze (start_unit, twos1)
        run_count = Div (tile_size, unit)
        run64 = Range (zero, run_count, one)
        run = Cast <to = 6> (run64)
        slots = Add (start_units, run)
        plain = Gather <axis = 0> (units, slots)
        axes23 = Constant <value_ints = [2, 3]> ()
        factors = Unsqueeze (factor, axes23)
        scaled = Mul (plain, factors)
        grid_of_tiles = Concat <axis = 0> (grid, tile)
        tiles = Reshape (scaled, grid_of_tiles)
        rows_of_tiles = Transpose <perm : ints = @perm> (tiles)
        grid_in_order = Gather <axis = 0> (grid, order)
        tile_in_order = Gather <axis = 0> (tile, order)
        padded = Mul (grid_in_order, tile_in_order)
        matrix = Reshape (rows_of_tiles, padded)
        begin_in_view = Mod (origin, tile)
        begin = Gather <axis = 0> (begin_in_view, order)
        size = Gather <axis = 0> (view, order)
        finish = Add (begin, size)
        axes01 = Constant <value_ints = [0, 1]> ()
        cropped = Slice (matrix, begin, finish, axes01)
        result = Reshape (cropped, shape)"""
)

_EMBEDDING = (
    _CONSTANTS
    + onnx_lookup.CHECKED_IDS
    + """
        id_place = Mul (ids_column, dim1)
        dim = Squeeze (dim1)
        run = Range (zero, dim, unit)
        place = Add (id_place, run)
        matrix = Gather <axis = 0> (view, order)
        matrix_rows, matrix_cols = Split <axis = 0> (matrix, ones2)
        row = Div (place, matrix_cols)
        col = Mod (place, matrix_cols)
        transposed, not_transposed = Split <axis = 0> (order, ones2)
        col_less_row = Sub (col, row)
        shift = Mul (col_less_row, transposed)
        r = Add (row, shift)
        c = Sub (col, shift)
        origin_r, origin_c = Split <axis = 0> (origin, ones2)
        r_origin = Add (r, origin_r)
        c_origin = Add (c, origin_c)
        i = Div (r_origin, tile_r)
        j = Div (c_origin, tile_c)
        r_inner = Mod (r_origin, tile_r)
        c_inner = Mod (c_origin, tile_c)
        r_offset = Mul (r_inner, tile_c)
        inner = Add (r_offset, c_inner)"""
    + _STARTS
    + """
        element = Add (start, inner)
        slot = Mod (element, n_memory)
        slot_unit64 = Div (slot, unit)
        slot_unit = Cast <to = 6> (slot_unit64)
        units = Reshape (memory32, row_of_units)
        plain = Gather <axis = 0> (units, slot_unit)
        factors = Unsqueeze (factor, twos1)
        scaled = Mul (plain, factors)
        ids_shape = Shape (ids)
        rows_shape = Concat <axis = 0> (ids_shape, dim1)
        result = Reshape <allowzero = 1> (scaled, rows_shape)"""
)

_REFERENCES = ", ".join(f"{name} : {kind.lower()} = @{name}" for name, kind in ATTRIBUTES.items())
_SIGNED = f"""
        unsigned = {DOMAIN}.RoastGather <{_REFERENCES}> (memory)
        bytes = Cast <to = 6> (signs)
        ones1 = Constant <value_ints = [1]> ()
        byte_column = Unsqueeze (bytes, ones1)
        place64 = Constant <value_ints = [1, 2, 4, 8, 16, 32, 64, 128]> ()
        place = Cast <to = 6> (place64)
        shifted = Div (byte_column, place)
        two64 = Constant <value_int = 2> ()
        two = Cast <to = 6> (two64)
        bits = Mod (shifted, two)
        minus1 = Constant <value_ints = [-1]> ()
        bits_flat = Reshape (bits, minus1)
        n_elements = Size (unsigned)
        end = Reshape (n_elements, ones1)
        zeros1 = Constant <value_ints = [0]> ()
        bits_used = Slice (bits_flat, zeros1, end)
        bits_float = Cast <to = 1> (bits_used)
        two_float = Constant <value_float = 2.0> ()
        one_float = Constant <value_float = 1.0> ()
        doubled = Mul (bits_float, two_float)
        sign_flat = Sub (doubled, one_float)
        shape = Shape (unsigned)
        sign = Reshape (sign_flat, shape)
        result = Mul (unsigned, sign)"""

# One operator with and one without a bias: an input that is left out does not survive inlining.
_LINEAR = f"""
        weight = {DOMAIN}.RoastGather <{_REFERENCES}> (memory)
        weight_t = Transpose <perm = [1, 0]> (weight)"""

_BODIES = {
    "RoastGather": ("memory", _GATHER),
    "RoastGatherFolded": ("memory", _GATHER),
    "RoastGatherSigned": ("memory, signs", _SIGNED),
    "RoastEmbedding": ("memory, ids", _EMBEDDING),
    "RoastLinear": ("x, memory", _LINEAR + "\n        result = MatMul (x, weight_t)"),
    "RoastLinearBias": (
        "x, memory, bias",
        _LINEAR + "\n        product = MatMul (x, weight_t)\n        result = Add (product, bias)",
    ),
}


def _parse(name: str, opset: int, narrow: bool) -> onnx.FunctionProto:
    inputs, body = _BODIES[name]
    if narrow and name == "RoastEmbedding":
        body = _CONSTANTS + onnx_lookup.NARROW
    return onnx.parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}, "{DOMAIN}" : {DOMAIN_VERSION}]>\n'
        f"{name} <{', '.join(ATTRIBUTES)}> ({inputs}) => (result)\n{{{body}\n}}"
    )
