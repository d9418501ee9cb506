"""Builds a minimal ONNX Runtime with custom operators from Debian's source.

    python custom_ops/minimal/build_minimal.py -o build/minimal

A minimal build, what mobile apps take for its size, reads .ort files and nothing else. Compiler, source
and libraries are those of Debian SUITE, in a folder of its own, from the mirror that this machine's apt
uses. What comes out needs that system's C library, and brings it along. Output:

    runtime/libonnxruntime.so.1           the library
    runtime/loader, runtime/lib*.so.*     what it takes to load it
    runtime/facts.json                    version, bytes, how it was made, seconds
    ort_run                               custom_ops/cross/ort_run.c, which runs a model in it
    log.txt                               what the commands said

Root is needed, because a system is entered. A second run does what a first one left undone: each step
works in a folder *.part, which gets its name when the step is complete.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAM = HERE.parent / "cross" / "ort_run.c"
SUITE = "trixie"
LIBRARY = "libonnxruntime.so.1"

OPTIONS = (
    *("-DCMAKE_BUILD_TYPE=MinSizeRel", "-DBUILD_SHARED_LIBS=OFF", "-DPython_EXECUTABLE=/usr/bin/python3"),
    *("-Donnxruntime_MINIMAL_BUILD=ON", "-Donnxruntime_MINIMAL_BUILD_CUSTOM_OPS=ON"),
    *("-Donnxruntime_BUILD_SHARED_LIB=ON", "-Donnxruntime_BUILD_UNIT_TESTS=OFF"),
    *("-Donnxruntime_DISABLE_ML_OPS=ON", "-Donnxruntime_DISABLE_CONTRIB_OPS=ON"),
    *("-Donnxruntime_ENABLE_CPUINFO=OFF", "-Donnxruntime_ENABLE_DLPACK=OFF"),
    # This switch makes it look for every library in the system, and download none.
    *("-Donnxruntime_USE_VCPKG=ON", "-DFETCHCONTENT_FULLY_DISCONNECTED=ON"),
    *("-DCMAKE_PREFIX_PATH=/build/cmake", "-DCMAKE_FIND_PACKAGE_PREFER_CONFIG=ON"),
    "-DCMAKE_PROJECT_INCLUDE=/build/cmake/settings.cmake",
    *("-Dsafeint_SOURCE_DIR=/usr/include/safeint", "-DFETCHCONTENT_SOURCE_DIR_UTF8_RANGE=/build/none"),
)
"""Only operators of the standard, as a reader of portable files may have no others."""


class BuildError(Exception):
    """A step failed; says which, and what to do."""


@dataclass(frozen=True)
class Commands:
    """Runs commands here and inside the other system; `log` has what they say."""

    log: Path

    def run(self, command: list[object], env: dict[str, str] | None = None) -> None:
        """Raises BuildError with the last lines of what the command said."""
        words = [str(word) for word in command]
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(words)}\n".encode())
            log.flush()
            start = log.tell()
            done = subprocess.run(
                words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, check=False
            )
        if done.returncode != 0:
            said = self.log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
            tail = "\n".join(said[-15:])
            raise BuildError(f"{tail}\n{words[0]} ended with status {done.returncode}; see {self.log}")

    def inside(self, root: Path, *command: object) -> None:
        """Run in /build of the system at `root`. Mounts and processes end with the command."""
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", f"--root={root}", "--mount-proc"]
        kept = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
        fixed = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        self.run([*apart, "--wd=/build", *command], {**kept, **fixed, "HOME": "/root"})


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def complaint() -> str | None:
    """Why this machine cannot build it, with what to do; or None."""
    if platform.system() != "Linux" or shutil.which("apt-get") is None:
        return "the minimal build is made from Debian packages, and this machine has no apt-get"
    if os.geteuid() != 0:
        return "the minimal build enters a system of its own, which only root may; run it as root"
    for program, package in (("debootstrap", "debootstrap"), ("unshare", "util-linux"), ("cc", "gcc")):
        if shutil.which(program) is None:
            return f"{program} is missing; run `apt-get install {package}`"
    return None


def mirror() -> str:
    """The address of Debian's packages in this machine's apt configuration."""
    wanted = "$(CREATED_BY)|$(ORIGIN)|$(LABEL)|$(REPO_URI)"
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", wanted], capture_output=True, text=True, check=True
    )
    return mirror_of(listing.stdout)


def mirror_of(listing: str) -> str:
    """The first line that is of Debian's own packages, not of its security updates or of others."""
    for line in listing.splitlines():
        kind, origin, label, address = line.split("|", 3)
        if (kind, origin, label) == ("Packages", "Debian", "Debian"):
            return address
    raise BuildError("apt knows no Debian mirror on this machine; add one, and run `apt-get update`")


def settings() -> list[Path]:
    """What ONNX Runtime's build reads beside its own files."""
    return sorted([*HERE.glob("*.cmake"), *HERE.glob("*.h")])


def recipe() -> str:
    """A digest of everything that decides what is built: another recipe, another build."""
    parts = [SUITE.encode(), *(option.encode() for option in OPTIONS)]
    parts += [path.read_bytes() for path in settings()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def is_built(folder: Path, wanted: str) -> bool:
    facts = folder / "runtime" / "facts.json"
    return facts.is_file() and json.loads(facts.read_text(encoding="utf-8"))["recipe"] == wanted


def make_system(commands: Commands, root: Path) -> None:
    """A Debian with compiler, libraries and sources, at `root`."""
    part, address = root.with_name(f"{root.name}.part"), mirror()
    shutil.rmtree(part, ignore_errors=True)
    bootstrap = ["debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE, part, address]
    commands.run(["unshare", "--mount", *bootstrap])
    lines = [f"{kind} {address} {SUITE} main" for kind in ("deb", "deb-src")]
    (part / "etc/apt/sources.list").write_text("\n".join([*lines, ""]), encoding="utf-8")
    for name in ("build", "build/none"):
        (part / name).mkdir()
    commands.inside(part, "apt-get", "update", "-q")
    commands.inside(part, "apt-get", "build-dep", "-q", "-y", "--no-install-recommends", "onnxruntime")
    # Of onnx, whose libraries are the full ones, a minimal build takes the format and one file.
    commands.inside(part, "apt-get", "source", "-q", "--tar-only", "onnxruntime", "onnx")
    for archive in sorted((part / "build").glob("*.tar.*")):
        commands.inside(part, "tar", "-xf", archive.name)
        archive.unlink()
    part.rename(root)


def source_of(root: Path, name: str) -> Path:
    """Where a source lies, as the system at `root` sees it."""
    found = sorted((root / "build").glob(f"{name}-[0-9]*"))
    if len(found) != 1:
        raise BuildError(f"{len(found)} sources of {name} in {root}/build; remove {root} and run again")
    return Path("/build") / found[0].name


def compile_library(commands: Commands, root: Path, jobs: int) -> None:
    shutil.rmtree(root / "build" / "cmake", ignore_errors=True)
    (root / "build" / "cmake").mkdir()
    for path in settings():
        shutil.copy2(path, root / "build" / "cmake")  # with its time, or a resumed build begins anew
    source = source_of(root, "onnxruntime") / "cmake"
    onnx = f"-DFETCHCONTENT_SOURCE_DIR_ONNX={source_of(root, 'onnx')}"
    commands.inside(
        *(root, "cmake", "-S", source, "-B", "out", "-G", "Ninja", "--compile-no-warning-as-error"),
        *(*OPTIONS, onnx),
    )
    commands.inside(root, "cmake", "--build", "out", "--target", "onnxruntime", "--parallel", jobs)


def collect(commands: Commands, root: Path, part: Path) -> None:
    """The library, stripped, with the libraries and the loader that it needs, into the folder `part`."""
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    commands.inside(root, "strip", "--strip-unneeded", "-o", f"/build/{LIBRARY}", f"out/{LIBRARY}")
    (root / "build" / LIBRARY).rename(part / LIBRARY)
    commands.inside(root, "sh", "-c", f"ldd out/{LIBRARY} > needs.txt")
    for line in (root / "build" / "needs.txt").read_text(encoding="utf-8").splitlines():
        found = re.match(r"\s*(?:(\S+) => )?(/\S+) \(", line)
        if found is None:
            continue
        path = root / found[2].lstrip("/")
        shutil.copy(path, part / (found[1] or "loader"))


def build_program(commands: Commands, folder: Path) -> None:
    part = folder / "ort_run.part"
    commands.run(["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", part, PROGRAM, "-ldl"])
    part.rename(folder / "ort_run")


def check(runtime: Path, program: Path) -> None:
    """Raises BuildError unless the library loads, and refuses an .onnx file for being one."""
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model.onnx"
        model.write_bytes(b"\x08\x08")
        (Path(name) / "in").write_bytes(bytes(8))
        words = [runtime / "loader", "--library-path", runtime, program, runtime / LIBRARY, model, "-"]
        words += [Path(name) / "in", Path(name) / "out"]
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    if done.returncode == 0 or "not supported in this build" not in done.stderr:
        raise BuildError(
            f"what was built is no minimal build: asked for an .onnx file it says {done.stderr!r}"
        )


def build_runtime(commands: Commands, folder: Path, jobs: int) -> None:
    """The folder runtime/, by way of work/, which is removed in the end."""
    root, part, runtime = folder / "work" / SUITE, folder / "runtime.part", folder / "runtime"
    root.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if not root.exists():
        say(f"1/3 a Debian {SUITE} with what the build needs (5 minutes, 2 GB)")
        make_system(commands, root)
    ready = time.monotonic()
    say(f"2/3 compiling ONNX Runtime on {jobs} cores (some 15 minutes on 2 idle ones)")
    compile_library(commands, root, jobs)
    compiled = time.monotonic()
    say("3/3 what it takes to run it")
    collect(commands, root, part)
    check(part, folder / "ort_run")
    facts = {
        "onnxruntime": source_of(root, "onnxruntime").name.rpartition("-")[2],
        "bytes": (part / LIBRARY).stat().st_size,
        "needs": {path.name: path.stat().st_size for path in sorted(part.iterdir()) if path.name != LIBRARY},
        "options": OPTIONS,
        "seconds": {"system": round(ready - began), "compile": round(compiled - ready)},
        "recipe": recipe(),
    }
    (part / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(runtime, ignore_errors=True)
    part.rename(runtime)
    shutil.rmtree(root.parent)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=HERE.parent.parent / "build" / "minimal")
    parser.add_argument("-j", "--jobs", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    folder = arguments.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    commands = Commands(folder / "log.txt")
    # As an exception, it also ends the command that is running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        build_program(commands, folder)
        if not is_built(folder, recipe()):
            if reason := complaint():
                raise BuildError(reason)
            build_runtime(commands, folder, arguments.jobs)
        facts = json.loads((folder / "runtime" / "facts.json").read_text(encoding="utf-8"))
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    say(f"{folder}/runtime: minimal ONNX Runtime {facts['onnxruntime']}, {facts['bytes']:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
