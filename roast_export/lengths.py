"""Lengths to try for the dynamic dimensions of a model, from what its trace says of them.

A dimension is a number, a symbol, or an expression of symbols (total = past + new, 4 * s). Symbols are varied
each for itself first; where the model refuses that, those of one length in the example are tied, as the two
lengths of `input_ids` and `attention_mask` are; where it refuses that too, one is varied at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
from torch import Tensor
from torch.export import ExportedProgram

from roast_export.program import Dims, Program, lengths_of, signature

WANTED = 3
"""Other lengths of each dimension to run at."""

LONGEST = 1024
"""The largest upper bound at which a dimension is run; where it is larger, twice the example's length is."""

MOST_TRIED = 60
"""Sets of lengths after which a model that refuses them is left alone."""

LARGEST = 1 << 22
"""Elements of all inputs together, beyond which lengths are not raised over the example's."""

Shapes = dict[str, list[int]]
Attempt = Callable[[str, Shapes], bool]
"""Called with a name and the shape of every input; says whether the model ran there."""


@dataclass
class _Symbol:
    label: str
    example: int
    least: int
    most: int

    @property
    def candidates(self) -> list[int]:
        """Other lengths, small ones and ones near the example's in turn."""
        n = self.example
        near = [n + 1, 2 * n, n // 2, 3 * n, n - 1, n + n // 2, 4 * n]
        small = [1, 2, 3, 5]
        mixed = (
            small + near
            if n < 32
            else [x for pair in zip(near, [*small, 7, 4, 6], strict=True) for x in pair]
        )
        allowed = [x for x in dict.fromkeys(mixed) if self.least <= x <= self.most and x != n]
        return allowed or [x for x in (self.least, self.most) if 0 < x < 1 << 16 and x != n]


class Dimensions:
    """The dynamic dimensions of a model's inputs."""

    def __init__(
        self, program: Program, example: Mapping[str, Any], dims: Mapping[str, Dims] | None = None
    ) -> None:
        """dims: the lengths that a file states, a name for each dynamic one; by default the program's own."""
        self.example: Shapes = {name: list(v.shape) for name, v in example.items() if isinstance(v, Tensor)}
        stated = (
            {name: lengths for name, (_, lengths) in signature(program).items()} if dims is None else dims
        )
        self.stated = {name: stated.get(name, shape) for name, shape in self.example.items()}
        self.exprs = _expressions(program, self.example)
        self._join_stated()
        self.symbols = self._symbols(_ranges(program))

    def _join_stated(self) -> None:
        """Bring together what the program and the file say of each length."""
        named: dict[str, Any] = {}
        for name, lengths in self.stated.items():
            for axis, stated in enumerate(lengths):
                found = self.exprs[name][axis]
                if isinstance(stated, int):
                    self._replace(found, stated)
                elif isinstance(found, int):
                    # A name for what the program has fixed: a symbol, so that it is tried and found out.
                    self.exprs[name][axis] = sympy.Symbol(stated, integer=True, positive=True)
                elif stated in named and isinstance(found, sympy.Symbol):
                    self._replace(found, named[stated])
                else:
                    named.setdefault(stated, found)

    def _replace(self, symbol: Any, value: Any) -> None:
        if not isinstance(symbol, sympy.Symbol):
            return
        for exprs in self.exprs.values():
            exprs[:] = [_number(e.subs(symbol, value)) if isinstance(e, sympy.Expr) else e for e in exprs]

    def _symbols(self, ranges: dict[Any, tuple[int, int]]) -> dict[Any, _Symbol]:
        found: dict[Any, _Symbol] = {}
        pairs = [
            (name, axis, expr)
            for name, exprs in self.exprs.items()
            for axis, expr in enumerate(exprs)
            if isinstance(expr, sympy.Expr)
        ]
        for name, axis, expr in sorted(pairs, key=lambda pair: len(pair[2].free_symbols)):
            free = [symbol for symbol in expr.free_symbols if symbol not in found]
            if len(free) != 1:
                continue
            known = expr.subs({symbol: item.example for symbol, item in found.items()})
            solved = sympy.solve(known - self.example[name][axis], free[0])
            if len(solved) == 1 and solved[0].is_Integer:
                stated = self.stated[name][axis]
                label = str(stated) if isinstance(stated, str) and expr.is_Symbol else f"{name}_{axis}"
                found[free[0]] = _Symbol(label, int(solved[0]), *ranges.get(free[0], (1, 1 << 30)))
        return found

    def vary(self, attempt: Attempt) -> None:
        """Try lengths until each dimension has run at WANTED others, or what is left is refused."""
        ran: dict[Any, set[int]] = {symbol: set() for symbol in self.symbols}
        derived = [
            (name, axis)
            for name, exprs in self.exprs.items()
            for axis, expr in enumerate(exprs)
            if isinstance(expr, sympy.Expr) and not expr.is_Symbol
        ]
        seen: dict[tuple[str, int], set[int]] = {place: set() for place in derived}
        tried: set[tuple[int, ...]] = set()
        for groups, others_fixed in self._plans():
            for chosen in self._choices(groups, others_fixed, ran):
                key = tuple(chosen.values())
                shapes = self._shapes(chosen)
                if key in tried or shapes is None:
                    continue
                if len(tried) >= MOST_TRIED:
                    return
                tried.add(key)
                label = ", ".join(f"{self.symbols[s].label}={n}" for s, n in chosen.items())
                if attempt(f"random {label}", shapes):
                    for symbol, length in chosen.items():
                        if length != self.symbols[symbol].example:
                            ran[symbol].add(length)
                    for name, axis in derived:
                        seen[name, axis] |= {shapes[name][axis]} - {self.example[name][axis]}
                if all(len(lengths) >= WANTED for lengths in [*ran.values(), *seen.values()]):
                    return

    def lengthen(self, attempt: Attempt) -> None:
        """Run each dimension once beyond the example's length, the longest that the model takes if possible.

        A file may hold what is known of each place, such as token types: only a long input reads the rest.
        """
        example = {symbol: item.example for symbol, item in self.symbols.items()}
        tied: dict[int, list[Any]] = {}
        for symbol, item in self.symbols.items():
            if not self._only_batch(symbol):
                tied.setdefault(item.example, []).append(symbol)
        for n, group in tied.items():
            most = min(self.symbols[symbol].most for symbol in group)
            for length in dict.fromkeys([most if most <= LONGEST else 2 * n, min(2 * n, most)]):
                chosen = {**example, **dict.fromkeys(group, length)}
                shapes = self._shapes(chosen)
                label = ", ".join(f"{self.symbols[s].label}={length}" for s in group)
                if length <= n or (shapes is not None and attempt(f"long {label}", shapes)):
                    break

    def _only_batch(self, symbol: Any) -> bool:
        """Whether it is nothing but the first of several axes."""
        return all(
            axis == 0 and len(exprs) > 1
            for exprs in self.exprs.values()
            for axis, expr in enumerate(exprs)
            if isinstance(expr, sympy.Expr) and symbol in expr.free_symbols
        )

    def _plans(self) -> Iterator[tuple[list[list[Any]], bool]]:
        """Groups of symbols that get one length, and whether only one group is varied at a time."""
        alone = [[symbol] for symbol in self.symbols]
        tied: dict[int, list[Any]] = {}
        for symbol, item in self.symbols.items():
            tied.setdefault(item.example, []).append(symbol)
        groups = list(tied.values())
        yield alone, False
        if len(groups) < len(alone):
            yield groups, False
        if len(groups) > 1:
            yield groups, True
        if len(alone) > 1 and len(groups) < len(alone):
            yield alone, True

    def _choices(
        self, groups: list[list[Any]], one: bool, ran: dict[Any, set[int]]
    ) -> Iterator[dict[Any, int]]:
        example = {symbol: item.example for symbol, item in self.symbols.items()}
        if one:
            for group in groups:
                for n in self.symbols[group[0]].candidates:
                    if any(len(ran[symbol]) < WANTED for symbol in group):
                        yield {**example, **dict.fromkeys(group, n)}
            return
        if all(len(lengths) >= WANTED for lengths in ran.values()):
            return
        lists = [self.symbols[group[0]].candidates for group in groups]
        for k in range(max((len(found) for found in lists), default=0)):
            chosen = dict(example)
            for place, (group, found) in enumerate(zip(groups, lists, strict=True)):
                if found:
                    # Different lengths for different symbols, so that a mixed-up pair shows.
                    chosen.update(dict.fromkeys(group, found[(k + place) % len(found)]))
            yield chosen

    def _shapes(self, lengths: dict[Any, int]) -> Shapes | None:
        """The shape of every input; None where a length is none, or too much for a test."""
        shapes: Shapes = {}
        for name, exprs in self.exprs.items():
            found = [e if isinstance(e, int) else _number(e.subs(lengths)) for e in exprs]
            if not all(isinstance(n, int) and n >= 0 for n in found):
                return None
            shapes[name] = found
        elements, before = _elements(shapes), _elements(self.example)
        return None if elements > max(4 * before, LARGEST) and elements > before else shapes

    def unvaried(self, ran: list[Shapes]) -> dict[str, list[tuple[str, int]]]:
        """Dimensions stated as dynamic that had the example's length wherever the model ran.

        By what a message calls them: every input and axis that has the dimension.
        """
        places: dict[str, list[tuple[str, int]]] = {}
        for (label, place), lengths in self._seen(ran).items():
            if not lengths:
                places[label] = places.get(label, []) + [
                    (name, axis)
                    for name, dims in self.stated.items()
                    for axis, stated in enumerate(dims)
                    if stated == place
                ]
        return places

    def few(self, ran: list[Shapes]) -> list[str]:
        """Dimensions at which the model ran at some other lengths, and at fewer than WANTED."""
        return [label for (label, _), lengths in self._seen(ran).items() if 0 < len(lengths) < WANTED]

    def _seen(self, ran: list[Shapes]) -> dict[tuple[str, str], set[int]]:
        """The lengths other than the example's of each dynamic dimension, by its label and its name."""
        labels: dict[str, str] = {}
        found: dict[tuple[str, str], set[int]] = {}
        for name, lengths in self.stated.items():
            for axis, stated in enumerate(lengths):
                if isinstance(stated, str):
                    label = labels.setdefault(stated, f"{stated} (axis {axis} of {name})")
                    seen = {shapes[name][axis] for shapes in ran if name in shapes}
                    found.setdefault((label, stated), set()).update(seen - {self.example[name][axis]})
        return found


def _expressions(program: Program, example: Shapes) -> dict[str, list[Any]]:
    if not isinstance(program, ExportedProgram):
        return {
            name: [
                length if isinstance(length, int) else sympy.Symbol(length, integer=True, positive=True)
                for length in lengths
            ]
            for name, (_, lengths) in program.signature.items()
            if name in example
        }
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return {name: lengths_of(nodes[name].meta["val"]) for name in example}


def _ranges(program: Program) -> dict[Any, tuple[int, int]]:
    """Bounds of each symbol. torch.export starts at 2 where it means any length: 1 might broadcast."""
    if not isinstance(program, ExportedProgram):
        return {}
    found = {}
    for symbol, bounds in program.range_constraints.items():
        least = int(bounds.lower) if bounds.lower.is_Integer else 1
        most = int(bounds.upper) if bounds.upper.is_Integer else 1 << 30
        found[symbol] = (1 if least <= 2 else least, most)
    return found


def _number(expr: Any) -> Any:
    return int(expr) if isinstance(expr, int) or getattr(expr, "is_Integer", False) else expr


def _elements(shapes: Shapes) -> int:
    total = 0
    for shape in shapes.values():
        product = 1
        for n in shape:
            product *= n
        total += product
    return total
