"""Fetches ExecuTorch for 64-bit ARM, and builds the operators and a program that runs a .pte with it.

    python custom_ops/cross/executorch_arm.py -o build/executorch-arm64

The runtime is ExecuTorch's own wheel for aarch64; the C++ headers that it was built with are a Debian
package, unpacked into the folder; zig compiles and links. What emulator.py fetches runs the result. Output:

    et_run, libroast_executorch.so     the program (et_run.cc) and the operators (executorch_op.cc)
    lib/                               the wheel's libraries: kernels, XNNPACK
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from emulator import run, unpack

HERE = Path(__file__).parent
SOURCES = HERE.parent
EXECUTORCH = "executorch==1.5.1"
# Every CPython's wheel has the same C++ libraries.
WHEEL = ("--platform", "manylinux_2_28_aarch64", "--python-version", "3.11", "--abi", "cp311")
# Older ones lack headers that the C++ headers want; emulator.py fetches a C library of this age or newer.
TARGET = "aarch64-linux-gnu.2.36"
TRAINING = SOURCES / "roast_scatter.cc"

LIBRARIES = (
    "executorch",
    "executorch_threadpool",
    "executorch_kernels_optimized",
    "executorch_backend_xnnpack",
)
"""In the order in which each needs those before it."""

# -ffp-contract: see ../CMakeLists.txt; the macro is what the wheel's headers ask of their users.
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-s",
         "-DC10_USING_CUSTOM_GENERATED_MACROS")  # fmt: skip


def fetch_runtime(folder: Path) -> None:
    """include/ and lib/ of the wheel."""
    with tempfile.TemporaryDirectory() as name:
        run(
            *(sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:"),
            *(*WHEEL, "-d", name, EXECUTORCH),
        )
        (wheel,) = Path(name).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            wanted = [
                n for n in archive.namelist() if n.startswith(("executorch/include/", "executorch/lib/"))
            ]
            archive.extractall(name, wanted)
        for part in ("include", "lib"):
            shutil.rmtree(folder / part, ignore_errors=True)
            shutil.move(Path(name) / "executorch" / part, folder / part)


def fetch_headers(folder: Path) -> Path:
    """The newest C++ headers that this Debian has for arm64: the folder of <vector>."""
    if shutil.which("apt-cache") is None:
        raise RuntimeError("the C++ headers come from a Debian package, and this machine has no apt-cache")
    pattern = r"^libstdc\+\+-[0-9]+-dev-arm64-cross$"
    found = subprocess.run(
        ["apt-cache", "search", "--names-only", pattern], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    versions = [int(line.split("-")[1]) for line in found if line]
    if not versions:
        raise RuntimeError("no package libstdc++-*-dev-arm64-cross is known; run `apt-get update` once")
    unpack(
        f"libstdc++-{max(versions)}-dev-arm64-cross",
        {f"usr/aarch64-linux-gnu/include/c++/{max(versions)}": "c++"},
        folder,
    )
    return folder / "c++"


def build(folder: Path, headers: Path, libraries: Path) -> None:
    """libraries: the C++ libraries for arm64 that emulator.py fetched."""
    import ziglang

    include = folder / "include"
    common = [
        *(Path(ziglang.__file__).parent / "zig", "cc", "-target", TARGET, *FLAGS),
        # As -isystem they would come after the C headers, which they must find behind them.
        *("-x", "c++", "-nostdinc++", "-I", headers, "-I", headers / "aarch64-linux-gnu"),
        *("-isystem", include, "-isystem", include / "executorch/runtime/core/portable_type/c10"),
    ]
    cxx = ("-x", "none", libraries / "libstdc++.so.6", libraries / "libgcc_s.so.1")
    linked = [*cxx, "-L", folder / "lib", "-Wl,--no-as-needed", *(f"-l{name}" for name in LIBRARIES)]
    kernels = sorted({*SOURCES.glob("roast_*.cc")} - {TRAINING})
    run(
        *(*common, "-shared", "-fPIC", "-I", SOURCES, SOURCES / "executorch_op.cc", *kernels),
        *(*cxx, "-L", folder / "lib", "-lexecutorch", "-o", folder / "libroast_executorch.so"),
    )
    run(*common, HERE / "et_run.cc", *linked, "-ldl", "-Wl,-rpath,$ORIGIN/lib", "-o", folder / "et_run")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    root = SOURCES.parent / "build"
    parser.add_argument("-o", "--output", type=Path, default=root / "executorch-arm64")
    parser.add_argument("--qemu", type=Path, default=root / "qemu", help="Where emulator.py put its output.")
    arguments = parser.parse_args()
    folder = arguments.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        fetch_runtime(folder)
        build(folder, fetch_headers(folder), arguments.qemu.resolve() / "aarch64" / "lib")
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
