"""Fetches what it takes to run ARM programs on this machine, without installing anything.

    python custom_ops/cross/emulator.py -o build/qemu

qemu-user and the ARM C libraries are Debian packages, unpacked into the folder; ONNX Runtime for
aarch64 is its wheel. The two programs beside this file are built with zig. Output:

    bin/qemu-aarch64, bin/qemu-arm                 the emulators
    aarch64/, arm/                                 what a program finds under / (qemu's option -L)
    kernel_driver-{aarch64,arm,x86_64}, ort_run-{aarch64,x86_64}
    aarch64/libonnxruntime.so.1
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = {
    "qemu-user-static": {
        "usr/bin/qemu-aarch64-static": "bin/qemu-aarch64",
        "usr/bin/qemu-arm-static": "bin/qemu-arm",
    },
    "libc6-arm64-cross": {"usr/aarch64-linux-gnu/lib": "aarch64/lib"},
    "libstdc++6-arm64-cross": {"usr/aarch64-linux-gnu/lib": "aarch64/lib"},
    "libgcc-s1-arm64-cross": {"usr/aarch64-linux-gnu/lib": "aarch64/lib"},
    "libc6-armel-cross": {"usr/arm-linux-gnueabi/lib": "arm/lib"},
}  # fmt: skip
"""Debian package: what is taken out of it, and where it goes."""

# Android's 32-bit ABI passes floats in integer registers, as this one does.
TARGETS = {
    "aarch64": ("aarch64-linux-gnu.2.28",),
    "arm": ("arm-linux-gnueabi.2.28", "-mcpu=generic+v7a+vfp3d16"),
    "x86_64": ("x86_64-linux-gnu.2.28",),
}
PROGRAMS = {"kernel_driver": ("aarch64", "arm", "x86_64"), "ort_run": ("aarch64", "x86_64")}

# Without an ARM processor's entry ONNX Runtime ends with a segmentation fault.
CPUINFO = """processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""


def run(*command: object, cwd: Path | None = None) -> None:
    """Raises RuntimeError with what the command said."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {(done.stderr or done.stdout).strip()[-1000:]}")


def unpack(package: str, wanted: dict[str, str], folder: Path) -> None:
    """The wanted files and folders of a Debian package."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise RuntimeError("the emulator comes from Debian packages, and this machine has no apt-get")
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        try:
            run("apt-get", "download", "-qq", package, cwd=temporary)
        except RuntimeError as error:
            raise RuntimeError(f"{error}; run `apt-get update` once and try again") from None
        (archive,) = temporary.glob("*.deb")
        run("dpkg-deb", "-x", archive, temporary / "root")
        for source, target in wanted.items():
            found, place = temporary / "root" / source, folder / target
            (place if found.is_dir() else place.parent).mkdir(parents=True, exist_ok=True)
            # A folder's links may already be there, which shutil.copytree refuses.
            run("cp", "-a", "--remove-destination", f"{found}/." if found.is_dir() else found, place)


def fetch_onnxruntime(folder: Path) -> None:
    """libonnxruntime.so.1 of this environment's version, for aarch64."""
    with tempfile.TemporaryDirectory() as name:
        run(
            *(sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:"),
            *("--platform", "manylinux_2_28_aarch64", "-d", name),
            f"onnxruntime=={version('onnxruntime')}",
        )
        (wheel,) = Path(name).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (library,) = (n for n in archive.namelist() if "/libonnxruntime.so." in n)
            (folder / "libonnxruntime.so.1").write_bytes(archive.read(library))


def build_programs(folder: Path) -> None:
    import ziglang

    zig = Path(ziglang.__file__).parent / "zig"
    for program, machines in PROGRAMS.items():
        for machine in machines:
            run(
                *(zig, "cc", "-O1", "-Wall", "-Wextra", "-Werror", "-target", *TARGETS[machine]),
                *("-o", folder / f"{program}-{machine}", HERE / f"{program}.c", "-ldl"),
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=HERE.parent.parent / "build" / "qemu")
    folder = parser.parse_args().output.resolve()
    try:
        for package, wanted in PACKAGES.items():
            unpack(package, wanted, folder)
        (folder / "aarch64" / "proc").mkdir(exist_ok=True)
        (folder / "aarch64" / "proc" / "cpuinfo").write_text(CPUINFO, encoding="utf-8")
        fetch_onnxruntime(folder / "aarch64")
        build_programs(folder)
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
