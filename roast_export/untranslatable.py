"""Why torch.onnx cannot translate a traced model, told to the person who wrote it: cause, line, next step."""

from __future__ import annotations

import re
import traceback

from torch.export import ExportedProgram
from torch.fx import Node

from roast_export.untraceable import is_own, place_of

_OPERATOR = re.compile(r"OpOverload\(op='([\w.]+)'")
_NODE = re.compile(r"translating node %(\w+) : .*?args = \(%(\w+)|translating node %(\w+)")
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)(?:\n\s+(\S.*))?')

_NEXT_STEP = (
    "write it with other operators of torch, or export with --to torchscript or --to pt2, which have them all"
)


def explain(error: BaseException, program: ExportedProgram) -> str:
    """One message about what torch.onnx raised while it translated a program."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    words = [str(link) for link in chain]
    first = next((line.strip() for line in words[-1].splitlines() if line.strip()), type(chain[-1]).__name__)
    operator = _OPERATOR.search(words[-1])
    cause = f"it has no translation of torch's {operator[1]}" if operator else first.rstrip(".")
    return f"torch.onnx cannot translate this model: {cause}{_place(words, program)}; {_NEXT_STEP}"


def _place(words: list[str], program: ExportedProgram) -> str:
    """The line of the model's code that calls the operator, where the trace has kept it."""
    nodes = {node.name: node for node in program.graph.nodes}
    for text in words:
        found = _NODE.search(text)
        if found is None:
            continue
        node = nodes.get(found[1] or found[3])
        if node is not None:
            return f", at {line}" if (line := _line(node)) else ""
        # Decompositions name nodes anew: a user of the same input is the operator it comes from.
        users = [_line(user) for user in nodes[found[2]].users] if found[2] in nodes else []
        return f", at {users[0]}" if len(set(users)) == 1 and users[0] else ""
    return ""


def _line(node: Node) -> str:
    frames = [
        traceback.FrameSummary(file, int(number), name, line=line or None)
        for file, number, name, line in _FRAME.findall(node.meta.get("stack_trace") or "")
    ]
    own = [frame for frame in frames if is_own(frame.filename)]
    return place_of(own[-1]) if own else ""
