"""Builds the ONNX Runtime library for every platform, from this machine, and checks what came out.

    python custom_ops/cross/build.py -o build/cross [--only android-arm64-v8a]...

zig (package ziglang) is compiler and linker; lief reads the results back. The sources use no C or C++
library, so no SDK is needed. Output: build/cross/<platform>/<library>, and libraries.json with sizes
and digests.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from platforms import KIB, PLATFORMS, Platform
from symbols import ENTRY, complaints, declared, defined

SOURCES = Path(__file__).parent.parent

# -ffp-contract, -ffreestanding: see CMakeLists.txt.
FLAGS = (
    *("-std=c++17", "-ffp-contract=off", "-ffreestanding"),
    *("-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics"),
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden", "-ffunction-sections", "-fdata-sections"),
    *("-fno-unwind-tables", "-fno-asynchronous-unwind-tables"),
    *("-Wall", "-Wextra", "-Werror"),
    "-DROAST_INFERENCE_ONLY",
)
# Fast what runs once per element: the instruction sets, whose loops must be unrolled (the product takes three
# times as long otherwise); the rest takes as long as ever in half the space. -O3 makes AVX-512 2.4x as fast
# at 32 rows and the portable code slower; elsewhere it only takes space.
SMALL, FAST, FASTEST = "-Oz", "-O2", "-O3"
# Gradients: no phone needs them, nor what ROAST_INFERENCE_ONLY leaves out.
TRAINING = SOURCES / "roast_scatter.cc"
# What every 64-bit ARM has something better for, and the word for the others that it is not there.
SPARE, WITHOUT_SPARE = SOURCES / "roast_isa_portable.cc", "-DROAST_NEON_ONLY"


def sources(folder: Path, platform: Platform) -> dict[str, list[Path]]:
    """Optimisation: sources; all but the adapters of other runtimes and the check against real headers."""
    paths = [*folder.glob("roast_*.cc"), *folder.glob("ort_*.cc"), *map(folder.joinpath, platform.sources)]
    left_out = {TRAINING.name, "ort_abi_check.cc", *([SPARE.name] if _is_arm64(platform) else [])}
    sorted_out: dict[str, list[Path]] = {SMALL: [], FAST: [], FASTEST: []}
    for path in sorted({*paths}):
        if path.name not in left_out:
            sorted_out[_optimisation(path)].append(path)
    return sorted_out


def _is_arm64(platform: Platform) -> bool:
    return platform.target.startswith("aarch64")


def _optimisation(path: Path) -> str:
    if not path.stem.startswith("roast_isa_"):
        return SMALL
    return FASTEST if path.stem == "roast_isa_avx512" else FAST


def build(platform: Platform, folder: Path, cache: Path) -> Path:
    """The finished library. Raises RuntimeError with the compiler's own words."""
    out = folder / platform.name / platform.file
    out.parent.mkdir(parents=True, exist_ok=True)
    flags = [*FLAGS, *platform.flags, *([WITHOUT_SPARE] if _is_arm64(platform) else [])]
    groups = [
        part
        for option, paths in sources(SOURCES, platform).items()
        for part in ("-cflags", *flags, option, "--", *paths)
    ]
    # compiler-rt brings memcpy and 64-bit division where a processor lacks them; Xcode's link has them.
    form = ["-static", "-fno-compiler-rt"] if platform.static else ["-dynamic", "-fcompiler-rt"]
    command = [
        *(_zig(), "build-lib", "-target", platform.target, *form, *platform.options),
        *("-O", "ReleaseFast", "-fstrip", "-fPIC", "--gc-sections", "-fno-emit-implib"),
        *(f"-femit-bin={out}", "--cache-dir", cache, "--global-cache-dir", cache),
        *groups,
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{platform.name}: zig cannot build it: {done.stderr.strip()[:2000]}")
    return out


def _zig() -> str:
    try:
        import ziglang
    except ImportError:
        raise RuntimeError("the package ziglang is missing; run `make cross`, which installs it") from None
    return str(Path(ziglang.__file__).parent / "zig")


def check(platform: Platform, library: Path) -> None:
    """Removes a library that is too large, shows too much, or needs anything. Raises RuntimeError then."""
    found = complaints(library, {ENTRY} | declared(SOURCES / "roast_kernel.h") - defined(TRAINING))
    size = library.stat().st_size
    if size > platform.limit:
        found.append(f"has {size} bytes, more than {platform.limit}")
    if found:
        library.unlink()
        raise RuntimeError(f"{platform.name}: {platform.file} {'; '.join(found)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=SOURCES.parent / "build" / "cross")
    parser.add_argument("--only", action="append", choices=[p.name for p in PLATFORMS], default=[])
    arguments = parser.parse_args()
    wanted = [p for p in PLATFORMS if not arguments.only or p.name in arguments.only]

    def make(platform: Platform) -> Path:
        library = build(platform, arguments.output.resolve(), arguments.output.resolve() / ".zig")
        check(platform, library)
        return library

    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            libraries = dict(zip(wanted, pool.map(make, wanted), strict=True))
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    _write_index(arguments.output / "libraries.json", libraries)
    for platform, library in libraries.items():
        size = library.stat().st_size / KIB
        sys.stdout.write(f"{platform.name:28}{size:6.1f} KiB  {library}\n")
    return 0


def _write_index(path: Path, libraries: dict[Platform, Path]) -> None:
    index = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for platform, library in libraries.items():
        digest = hashlib.sha256(library.read_bytes()).hexdigest()
        index[platform.name] = {
            "file": library.name,
            "target": platform.target,
            "bytes": library.stat().st_size,
            "sha256": digest,
        }
    path.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
