"""Where one element of a virtual weight comes from: its slot of the array, its factor and the seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from roast_export.mapping import Element, Hash, Mapping, Sign
from roast_export.program import VirtualLayer

MOST_DRAWN = 1 << 26
"""Elements above which a stream from MT19937 is not drawn for the sake of one of them."""


def source_of(layer: VirtualLayer, index: tuple[int, ...]) -> str:
    """`[3,4] is array[17] * -0.25, from hash1 (p=..., a=..., b=..., q=..., g=...)`.

    index: of an element of the weight, in its own shape.
    """
    m = layer.mapping
    where, seeds = f"[{','.join(map(str, index))}]", ", ".join(_seeds(m))
    drawn = m.element is not Element.HASH or m.sign is Sign.MT19937
    if drawn and m.numel > MOST_DRAWN:
        return f"{where} is drawn from {seeds}"
    slot, sign = (int(m.indices()[index]), int(m.signs()[index])) if drawn else _element(m, index)
    factor = float(np.float32(layer.scale)) * sign
    return f"{where} is {layer.array}[{slot}] * {factor:.9g}, from {seeds}"


def _element(m: Mapping, index: tuple[int, ...]) -> tuple[int, int]:
    """Slot and sign by the mapping of that element alone."""
    r, c = divmod(int(np.ravel_multi_index(index, m.shape)), m.matrix[1])
    r, c = (c, r) if m.transposed else (r, c)
    origin = (m.origin[0] + r, m.origin[1] + c)
    alone = replace(m, shape=(1,), matrix=(1, 1), transposed=False, origin=origin)
    return int(alone.indices()[0]), int(alone.signs()[0])


def _seeds(m: Mapping) -> list[str]:
    """Coefficients of every hash in use, and seeds of MT19937."""
    found = [
        f"{name} ({', '.join(f'{key}={value}' for key, value in zip('pabqg', level.to_list(), strict=True))})"
        for name, level in (("hash1", m.hash1), ("hash2", m.hash2), ("sign_hash", m.sign_hash))
        if level != Hash()
    ]
    if m.element is not Element.HASH:
        found.append(f"MT19937 seed {m.seed}")
    if m.sign is Sign.MT19937:
        found.append(f"signs from MT19937 seed {m.sign_seed}")
    return found
