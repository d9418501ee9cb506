"""What a built library shows to the world and takes from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENTRY = "RegisterCustomOps"

# zig's linker exports them from every Mach-O library; no host looks for them.
_MACH_O_EXTRA = {"_mh_dylib_header", "__dso_handle"}
# In libSystem, which every program of Apple's systems has.
_LIB_SYSTEM = {"dyld_stub_binder", "memcpy", "memset", "bzero", "__bzero", "__chkstk_darwin"}


def declared(header: Path) -> set[str]:
    """The functions that roast_kernel.h exports."""
    return set(re.findall(r"^ROAST_EXPORT [^;]*?\b(roast_\w+)\(", header.read_text(encoding="utf-8"), re.M))


def defined(source: Path) -> set[str]:
    """The functions of roast_kernel.h that a source file has."""
    return set(re.findall(r"^\w[^;{}]*?\b(roast_\w+)\([^;]*?\) \{", source.read_text(encoding="utf-8"), re.M))


def complaints(library: Path, expected: set[str]) -> list[str]:
    """What is wrong with the symbols of a library; expected: the names it must export, no others."""
    exported, imported, needs = _archive(library) if library.suffix == ".a" else _linked(library)
    found = [f"does not export {name}" for name in sorted(expected - exported)]
    found += [f"exports {name}, which is internal" for name in sorted(exported - expected)]
    found += [f"needs {name} from somebody else" for name in sorted(imported)]
    return found + [f"needs the library {name}" for name in sorted(needs)]


def _linked(library: Path) -> tuple[set[str], set[str], set[str]]:
    import lief

    lief.logging.disable()  # it remarks on what zig leaves out of DLLs
    binary: Any = lief.parse(str(library))
    if isinstance(binary, lief.MachO.Binary):
        exported = {_plain(export.symbol.name) for export in binary.dyld_info.exports}
        imported = {_plain(symbol.name) for symbol in binary.imported_symbols} - _LIB_SYSTEM
        other = [item for item in binary.libraries if item.command != lief.MachO.LoadCommand.TYPE.ID_DYLIB]
        needs = {item.name for item in other} - {"/usr/lib/libSystem.B.dylib"}
        return exported - _MACH_O_EXTRA, imported, needs
    if isinstance(binary, lief.PE.Binary):
        entries = binary.get_export().entries
        functions = {f"{function.name}" for item in binary.imports for function in item.entries}
        return {entry.name for entry in entries}, functions, {item.name for item in binary.imports}
    named = [symbol for symbol in binary.dynamic_symbols if symbol.name]
    defined_here, undefined = [{s.name for s in named if (s.shndx == 0) == flag} for flag in (False, True)]
    return defined_here, undefined, set(binary.libraries)


def _archive(library: Path) -> tuple[set[str], set[str], set[str]]:
    """Of a static library of Mach-O objects: what one of its objects lacks, another may have."""
    import lief

    internal: set[str] = set()
    exported: set[str] = set()
    undefined: set[str] = set()
    for member in _members(library.read_bytes()):
        fat: Any = lief.MachO.parse(list(member))
        for symbol in fat.at(0).symbols:
            if symbol.origin != lief.MachO.Symbol.ORIGIN.SYMTAB or not symbol.raw_type & _EXTERNAL:
                continue
            if symbol.raw_type & _KIND == 0:
                undefined.add(_plain(symbol.name))
            else:
                (internal if symbol.raw_type & _PRIVATE else exported).add(_plain(symbol.name))
    return exported, undefined - exported - internal - _LIB_SYSTEM, set()


# Of n_type in mach-o/nlist.h.
_EXTERNAL, _PRIVATE, _KIND = 0x01, 0x10, 0x0E


def _members(archive: bytes) -> Iterator[bytes]:
    """The object files of an ar archive, whose names may stand in front of the contents (BSD)."""
    place = 8
    while place + 60 <= len(archive):
        name = archive[place : place + 16].decode().strip()
        size = int(archive[place + 48 : place + 58])
        skip = int(name[3:]) if name.startswith("#1/") else 0
        body = archive[place + 60 + skip : place + 60 + size]
        if body.startswith(b"\xcf\xfa\xed\xfe"):
            yield body
        place += 60 + size + size % 2


def _plain(name: str) -> str:
    """Mach-O puts an underscore in front of every C name."""
    return name.removeprefix("_")
