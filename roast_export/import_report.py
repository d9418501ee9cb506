"""What an import found, proved and dropped."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from roast_export.printable import one_line
from roast_export.report_text import MAX_LAYERS, bytes_text, count, shape_text, table


@dataclass(frozen=True)
class ImportedLayer:
    """One layer of a research checkpoint, and what became of it."""

    name: str
    source: str
    """Class of the research module."""
    shape: tuple[int, ...]
    kind: str
    """Map: "pareto", "rzlinear" ...; "dense" if the weight was expanded; "" if it was refused."""
    how: str
    """Where the map comes from, or why there is none."""
    proved: int = 0
    """Entries of the stored table that were compared and equal; 0 where the format stores no table."""
    table_bytes: int = 0
    """Index and sign tables in the checkpoint; an export drops them."""
    packed_signs: int = 0
    """Bytes of packed signs that a portable file carries; 0 if it needs none."""
    drawn: bool = False
    """Whether slots are drawn from MT19937: such a map has no small form in standard operators."""
    refused: bool = False

    @property
    def elements(self) -> int:
        total = 1
        for dim in self.shape:
            total *= dim
        return total

    @property
    def verdict(self) -> str:
        if self.refused:
            return "refused"
        if self.kind == "dense":
            return "dense"
        return f"{self.proved:,} of {self.elements:,}" if self.proved else "by formula"


@dataclass(frozen=True)
class ImportReport:
    """The table that an import prints. `str()` is ASCII text."""

    layers: list[ImportedLayer]
    array_bytes: int
    kept_bytes: int
    """Parameters and buffers that were never compressed, and weights made dense."""
    notes: list[str] = field(default_factory=list)

    @property
    def table_bytes(self) -> int:
        return sum(layer.table_bytes for layer in self.layers)

    @property
    def export_bytes(self) -> int:
        """What an export weighs, records and graph aside."""
        return self.array_bytes + self.kept_bytes

    @property
    def packed_sign_bytes(self) -> int:
        return sum(layer.packed_signs for layer in self.layers)

    @property
    def elements(self) -> int:
        return sum(layer.elements for layer in self.layers)

    def __str__(self) -> str:
        shown = self.layers[:MAX_LAYERS]
        rows: list[tuple[str, ...]] = [
            (x.name, x.source, shape_text(x.shape), x.kind or "-", x.how, x.verdict) for x in shown
        ]
        if len(shown) < len(self.layers):
            rows.append((f"... {len(self.layers) - len(shown):,} more ...", *[""] * 5))
        columns = ["layer", "module", "shape", "map", "recovered from", ">proved"]
        virtual = [x for x in self.layers if not x.refused and x.kind != "dense"]
        proved = sum(x.proved for x in virtual)
        lines = [
            f"{count(len(virtual), 'virtual weight')}, {sum(x.elements for x in virtual):,} elements, "
            f"{proved:,} table entries proved",
            f"information: arrays {bytes_text(self.array_bytes)}, "
            f"other parameters {bytes_text(self.kept_bytes)}; "
            f"index and sign tables {bytes_text(self.table_bytes)}, not needed",
            f"an export weighs about {bytes_text(self.export_bytes)}; "
            f"dense it would be {bytes_text(4 * self.elements + self.kept_bytes)}",
        ]
        if self.packed_sign_bytes:
            lines.append(
                f"signs come from MT19937: --portable adds them packed, {bytes_text(self.packed_sign_bytes)}"
                "; without it the file runs with the native library only"
            )
        drawn = [x.name for x in self.layers if x.drawn]
        if drawn:
            names = ", ".join(drawn[:2]) + (" ..." if len(drawn) > 2 else "")
            lines.append(
                f"slots of {names} are drawn from MT19937: no small form in standard operators. Use the "
                "native library, or make them dense (dense = true in the facts file)"
            )
        return "\n".join(
            [
                table(f"Imported layers: {len(self.layers):,}", columns, rows),
                *map(one_line, [*lines, *self.notes]),
            ]
        )


def import_report(model: nn.Module) -> ImportReport | None:
    """The report of the import that made this model, if one did."""
    found: ImportReport | None = model.__dict__.get("_roast_import")
    return found
