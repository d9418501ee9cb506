"""A folder that an app takes in: model, operator library, the lines that register it, golden values."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping as Lookup
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from roast_export import onnx_ops, to_web
from roast_export.built import build_folder, missing
from roast_export.errors import ExportError, InputError
from roast_export.printable import to_json
from roast_export.runtimes import Array

FILES = Path(__file__).parent / "bundle_files"

LARGEST_GOLDEN = 1 << 20
"""Elements of inputs and outputs above which golden values are no longer a small file."""


@dataclass(frozen=True)
class Item:
    """One file of a bundle: where it stands, what it is for, and where it comes from.

    source: a file of bundle_files (rendered if it ends in .j2), or <platform>/<library> of `make cross`.
    """

    place: str
    purpose: str
    source: str
    native: bool = False


_ANDROID = "app/src/main"
_IOS = "RoastOrt.xcframework"
_REGISTERS = "opens the model with its library"
_HEADER = "the library's entry, for Swift"


def _library(place: str, platform: str) -> Item:
    return Item(place, "operator library", f"{platform}/{Path(place).name}", native=True)


def _slice(identifier: str) -> tuple[Item, ...]:
    """The framework's part for one kind of device."""
    folder = f"{_IOS}/{identifier}"
    return (
        _library(f"{folder}/libroast_ort.a", f"{identifier}-static"),
        Item(f"{folder}/Headers/RoastOrt.h", _HEADER, "RoastOrt.h"),
        Item(f"{folder}/Headers/module.modulemap", _HEADER, "module.modulemap"),
    )


ITEMS: dict[str, tuple[Item, ...]] = {
    "android": (
        _library(f"{_ANDROID}/jniLibs/arm64-v8a/libroast_ort.so", "android-arm64-v8a"),
        _library(f"{_ANDROID}/jniLibs/armeabi-v7a/libroast_ort.so", "android-armeabi-v7a"),
        _library(f"{_ANDROID}/jniLibs/x86_64/libroast_ort.so", "android-x86_64"),
        Item(f"{_ANDROID}/kotlin/Roast.kt", _REGISTERS, "Roast.kt.j2"),
    ),
    "ios": (
        Item(f"{_IOS}/Info.plist", "what the framework holds", "Info.plist"),
        *_slice("ios-arm64"),
        *_slice("ios-arm64-simulator"),
        Item("Roast.swift", _REGISTERS, "Roast.swift.j2"),
    ),
    "web": (Item("roast.mjs", "opens the model with its settings", "roast.mjs.j2"),),
    "linux-arm64": (
        _library("libroast_ort.so", "linux-arm64"),
        Item("main.cc", _REGISTERS, "main.cc.j2"),
    ),
}
PLATFORMS = tuple(ITEMS)

_MODEL_FOLDER = {"android": f"{_ANDROID}/assets/"}


def write(
    source: Path,
    platform: str,
    folder: Path,
    *,
    inputs: Lookup[str, Array],
    outputs: Lookup[str, Array],
    bounds: Lookup[str, float],
) -> list[str]:
    """Fill `folder` for a platform with the .onnx file `source`; the names of the files, sorted.

    inputs, outputs: golden values by name: what torch makes of one set of inputs.
    bounds: how far an element of each output may be off on the device.

    Raises:
        InputError: there is no such platform, or the golden values are too many.
        ExportError: the folder is not empty, a library has not been built, or the model has no form there.
    """
    if platform not in ITEMS:
        raise InputError(f"platform {platform!r} is not one of {', '.join(PLATFORMS)}")
    if sum(value.size for value in [*inputs.values(), *outputs.values()]) > LARGEST_GOLDEN:
        raise InputError("the example has more than 2^20 elements; bundle with a smaller batch")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} is not an empty folder; name another one, or empty it")
    built = build_folder() / "cross"
    reason = missing([built / item.source for item in ITEMS[platform] if item.native], "make cross")
    if reason:
        raise ExportError(reason)
    model = source.name
    model_place = _MODEL_FOLDER.get(platform, "") + model
    (folder / model_place).parent.mkdir(parents=True, exist_ok=True)
    files = [(model_place, "the model"), ("golden.json", "inputs, and the outputs they must give")]
    if platform == "web":
        to_web.write(source, folder / model)
        files.append((to_web.settings_path(Path(model)).name, "session options that keep weights virtual"))
    else:
        shutil.copyfile(source, folder / model_place)
    files += [(item.place, item.purpose) for item in ITEMS[platform]]
    names = _names(source, platform) | {"files": files}
    for item in ITEMS[platform]:
        _place(item, folder / item.place, built, names)
    _place(Item("README.md", "", "README.md.j2"), folder / "README.md", built, names)
    golden = {"inputs": _golden(inputs), "outputs": _golden(outputs)}
    for name, bound in bounds.items():
        golden["outputs"][name]["bound"] = bound
    (folder / "golden.json").write_text(to_json(golden, indent=None), encoding="utf-8")
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _place(item: Item, target: Path, built: Path, names: dict[str, Any]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if item.native:
        shutil.copyfile(built / item.source, target)
    elif item.source.endswith(".j2"):
        target.write_text(_rendered(item.source, names), encoding="utf-8")
    else:
        shutil.copyfile(FILES / item.source, target)


def _rendered(name: str, names: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FILES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template(name).render(names)


def _names(source: Path, platform: str) -> dict[str, Any]:
    proto = onnx.load(source)
    layers = onnx_ops.layers_in(proto.graph)
    virtual = sum(4 * math.prod(onnx_ops.mapping_of(node)[0].shape) for node in layers)
    return {
        "model": source.name,
        "stem": source.stem,
        "suffix": source.suffix.removeprefix("."),
        "settings": to_web.settings_path(Path(source.name)).name,
        "platform": platform,
        "version": version("roast-export"),
        "bytes": f"{source.stat().st_size:,}",
        "dense_bytes": f"{virtual:,}",
    }


def _golden(values: Lookup[str, Array]) -> dict[str, Any]:
    return {
        name: {"type": str(value.dtype), "dims": list(value.shape), "data": value.ravel().tolist()}
        for name, value in values.items()
    }
