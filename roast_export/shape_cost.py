"""What the shape expressions of a torch.export archive cost to read: torch evaluates each with sympy.

`9**9**9**9` is ten bytes and never ends, and sympy takes time that grows with the square of a nested
expression. So numbers are bounded before anything is computed, and so is the length of what is read.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

CHARACTERS = 100_000
LONGEST = 1_500
"""Characters of one expression, and numbers, symbols and operations in it."""
WORK = 20_000_000
"""Sum over an archive of the square of those: minutes of sympy."""
BITS = 4_096
"""What the numbers of an expression may grow to; lengths have 64 bits."""
_POWERS = {"Pow", "PowByNatural", "FloatPow", "LShift"}


def too_costly(tree: Any) -> str | None:
    """Why the expressions in one JSON tree of an archive are not evaluated; None if they may be."""
    work = 0
    for text in _expressions(tree):
        if len(text) > CHARACTERS:
            return f"a shape expression of {len(text):,} characters"
        try:
            parsed = ast.parse(text, mode="eval").body
            length, bits = _length(parsed), _bits(parsed)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return f"the expression {text[:40]!r}"
        work += length**2
        if length > LONGEST or work > WORK:
            return "shape expressions that take too long to read"
        if bits > BITS:
            return f"the power in the expression {text[:40]!r}"
    return None


def _expressions(tree: Any) -> Iterator[str]:
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if isinstance(item.get("expr_str"), str):
                yield item["expr_str"]
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _is_symbol(node: ast.AST) -> bool:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Symbol"):
        return False
    return all(isinstance(part, ast.Constant) for part in [*node.args, *(key.value for key in node.keywords)])


def _length(tree: ast.AST) -> int:
    count, waiting = 0, [tree]
    while waiting:
        node = waiting.pop()
        count += isinstance(node, ast.Call | ast.BinOp | ast.Constant | ast.Compare | ast.Name)
        if not _is_symbol(node):
            waiting += ast.iter_child_nodes(node)
    return count


def _bits(node: ast.AST) -> float:
    """At most so many bits has a number that an expression comes to while symbols stand for lengths."""
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Pow | ast.LShift):
            return _power(node.left, node.right)
        return _bits(node.left) + _bits(node.right)
    if _is_symbol(node):
        return 1.0
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in _POWERS and len(node.args) == 2:
            return _power(*node.args)
        return sum(map(_bits, [*node.args, *(keyword.value for keyword in node.keywords)]))
    if isinstance(node, ast.UnaryOp):
        return _bits(node.operand)
    if isinstance(node, ast.Compare):
        return sum(map(_bits, [node.left, *node.comparators]))
    if isinstance(node, ast.Constant):
        return _digits(str(node.value))
    return 1.0


def _digits(number: str) -> float:
    """Bits of a number as it is written. Some stand in quotes: Integer('3')."""
    exponent = re.search(r"[eE][+-]?(\d+)$", number)
    return 4.0 * len(number) + (4.0 * float(exponent[1]) if exponent else 0.0)


def _power(base: ast.expr, exponent: ast.expr) -> float:
    """The exponent must be a number that is written out; what a symbol stands for may be any."""
    while isinstance(exponent, ast.UnaryOp):
        exponent = exponent.operand
    if isinstance(exponent, ast.Call) and isinstance(exponent.func, ast.Name):
        if exponent.func.id == "Rational" and len(exponent.args) == 2:
            return max(_power(base, argument) for argument in exponent.args)
        if exponent.func.id in ("Integer", "Float", "ToFloat") and exponent.args:
            return _power(base, exponent.args[0])
    try:
        factor = float(str(exponent.value)) if isinstance(exponent, ast.Constant) else float("inf")
    except ValueError:
        factor = float("inf")
    return _bits(base) * max(1.0, factor) if factor == factor else float("inf")
