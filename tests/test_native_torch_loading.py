"""libroast_torch: what it leaves behind, how it is loaded beside other copies, and what it needs."""

from __future__ import annotations

import ctypes as c
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import roast_export
from roast_export.errors import RoastError
from roast_export.libraries import load_torch_library, ort_library_path, torch_library_path
from roast_export.mapping import Hash, Mapping
from tests.test_native_torch import CALLS, array, random

PATH = torch_library_path()
OURS = roast_export.__version__
OTHER = re.sub(r"\d", "9", OURS)
P = 2038074743

lib = c.CDLL(PATH)
lib.roast_torch_status.restype = c.c_char_p
lib.roast_torch_plans.restype = c.c_size_t


def run_python(code: str, **environment: str) -> str:
    """What a fresh Python prints; its torch has nothing of this package until a line loads it."""
    done = subprocess.run(
        [sys.executable, "-c", f"{HEAD}\n{code}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd="/",
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAD = f"""
import ctypes, torch
PATH, PACKAGE = {PATH!r}, {list(roast_export.__path__)!r}

def status(path):
    lib = ctypes.CDLL(path)
    lib.roast_torch_status.restype = ctypes.c_char_p
    return (lib.roast_torch_status() or b"fine").decode()

def package():
    # libraries.py without the rest of the package, which takes long to import.
    import sys, types
    sys.modules["roast_export"] = types.ModuleType("roast_export")
    sys.modules["roast_export"].__path__ = PACKAGE
    from roast_export.libraries import load_torch_library
    try:
        load_torch_library()
    except Exception as error:
        return type(error).__name__ + " " + str(error)
    return "fine"
"""


# ---- What stays behind ----


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


M = Mapping((16, 128), 1024, (16, 128), tile=(1, 128), hash1=Hash(P, 5, 7), range=8)
GOOD = {
    "memory": array(M),
    "mapping": M.to_list(),
    "scale": 0.5,
    "x": random(8, 128),
    "bias": random(16),
    "ids": torch.arange(16),
    "grad": random(16, 128),
    "rows": random(16, 128),
}
BAD = {
    "mapping": {"mapping": M.to_list()[:-1]},
    "scale": {"scale": float("inf")},
    "sizes": {"memory": torch.zeros(1025), "grad": random(16, 64), "rows": random(15, 128)},
    "types": {"memory": torch.zeros(1024).int(), "grad": random(16, 128).int(), "ids": torch.zeros(16)},
    "ranks": {
        "bias": random(16, 16),
        "memory": array(M)[None],
        "grad": array(M),
        "ids": torch.full((99,), 16),
    },
}


def call_all(arguments: dict[str, object]) -> int:
    """How many of the operators refuse copies of these arguments."""
    refused = 0
    for call in CALLS.values():
        copies = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        try:
            call(copies)
        except (RuntimeError, IndexError):
            refused += 1
    return refused


def growth(arguments: dict[str, object], refused: int) -> int:
    """Bytes after 5,000 calls that were not there before. The smallest object, a list, would take 3 MB."""
    before = 0
    for rounds in (100, 1000):
        before = resident()
        assert all(call_all(arguments) == refused for _ in range(rounds))
    return resident() - before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
@pytest.mark.parametrize("name", ["none", *BAD])
def test_calls_and_errors_leave_nothing_behind(name):
    arguments = GOOD | BAD.get(name, {})
    refused = call_all(arguments)
    assert (refused == 0) == (name == "none")
    assert growth(arguments, refused) < 1 << 20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_doubles_leave_nothing_behind():
    doubles = {k: v.double() if isinstance(v, torch.Tensor) and k != "ids" else v for k, v in GOOD.items()}
    assert growth(doubles, 0) < 1 << 20


def test_the_plans_that_are_kept_are_bounded():
    """More plans than are kept, and then tables of more bytes; a plan that was dropped is made anew."""
    printed = run_python("""
lib = ctypes.CDLL(PATH)
lib.roast_torch_plans.restype = lib.roast_torch_table_bytes.restype = ctypes.c_size_t
from roast_export.mapping import Hash, Mapping

def small(k):
    m = Mapping((1, 2), 9, (1, 2), hash1=Hash(7, g=k), range=9)
    return torch.ops.roast.gather(torch.arange(9.0), m.to_list(), 1.0)[0, 0].item() == k % 7

def large(k):
    shape = (4096, 16384)
    m = Mapping(shape, 4096, shape, tile=(4, 4), hash1=Hash(7, g=k))
    torch.ops.roast.linear(torch.zeros(0, 16384), torch.zeros(4096), None, m.to_list(), 1.0)
    return lib.roast_torch_table_bytes()

print(all(small(k) for k in range(5000)), small(0), lib.roast_torch_plans())
sizes = [large(k) for k in range(20)]
print(sizes[0], max(sizes), lib.roast_torch_plans() < 4096)
""")
    of_one = 4096 * 16384 // 16 * 4
    most = (256 << 20) // of_one * of_one
    assert printed.split("\n") == ["True True 4096", f"{of_one} {most} True"]


# ---- Loading ----


def test_the_version_is_the_package_s():
    assert torch.ops.roast.version() == OURS
    assert lib.roast_torch_status() is None


def test_loading_again_is_quiet():
    before = lib.roast_torch_plans()
    load_torch_library()
    assert lib.roast_torch_plans() == before


def test_a_program_may_load_the_library_before_the_package():
    printed = run_python("""
print(status(PATH))
fields = [1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0] + 2 * [1, 0, 0, 0, 0] + [1, 1, 0] + [1, 0, 0, 0, 0] + [0, 0, 1, 1]
print(torch.ops.roast.gather(torch.ones(1), fields, 2.5).item())
try:
    torch.ops.roast.gather(torch.ones(1).double(), fields, 2.5)
except RuntimeError as error:
    print(error)
from roast_export import torch_ops
print(torch_ops.LIBRARY_ABSENT)
x = torch.ones(1, dtype=torch.float64, requires_grad=True)
torch.ops.roast.gather(x, fields, 2.0).sum().backward()
print(x.grad.item())
""")
    refusal = "roast::gather: memory is float64, it must be float32 or float16"
    assert printed.split("\n") == ["fine", "2.5", refusal, "None", "2.0"]


def test_a_second_copy_registers_nothing_and_says_so(tmp_path):
    first, second = (str(shutil.copy(PATH, tmp_path / name)) for name in ("first.so", "second.so"))
    printed = run_python(f"""
import os
os.chdir({str(tmp_path)!r})
os.environ["ROAST_TORCH_LIBRARY"] = "first.so"  # a relative path, for once
print(package())
print(status({first!r}))
print(status({second!r}))
print(package())
""")
    refusal = (
        f"another libroast_torch ({OURS}) is already loaded in this process, this one ({OURS}) stays unused; "
        "keep one of the two"
    )
    assert printed.split("\n") == ["fine", "fine", refusal, "fine"]


def test_operators_of_others_are_left_alone():
    first, second = run_python("""
from torch import library
other = library.Library("roast", "DEF")
other.define("gather(Tensor x) -> Tensor")
other.impl("gather", lambda x: x + 1, "CompositeExplicitAutograd")
print(status(PATH))
print(torch.ops.roast.gather(torch.ones(1)).item(), hasattr(torch.ops.roast, "linear"))
""").split("\n")
    assert first.startswith("torch has operators named roast:: already, which are not this library's; load")
    assert second == "2.0 False"


def test_a_registration_that_fails_halfway_is_undone():
    first, second = run_python("""
from torch import library
other = library.Library("roast", "FRAGMENT")
other.define("linear(Tensor x) -> Tensor")
print(status(PATH))
print(hasattr(torch.ops.roast, "gather"), hasattr(torch.ops.roast, "linear"))
""").split("\n")
    assert first.startswith("torch has operators named roast:: already, which are not this library's; load")
    assert second == "False True"


def test_another_version_is_refused(tmp_path):
    data = Path(PATH).read_bytes()
    assert OURS.encode() + b"\0" in data
    other = tmp_path / Path(PATH).name
    other.write_bytes(data.replace(OURS.encode() + b"\0", OTHER.encode() + b"\0"))
    code = "print(package())\nprint(hasattr(torch.ops.roast, 'gather'))"
    refusal, loaded = run_python(code, ROAST_TORCH_LIBRARY=str(other)).split("\n")
    assert refusal.startswith(f"RoastError {other} is of another version than roast-export {OURS}; build the")
    assert loaded == "False", "torch would keep the operators"
    text = f"RoastError two versions of roast-export in one process: {OURS} from "
    printed = run_python(f"print(status({str(other)!r}))\nprint(package())")
    assert printed.startswith(f"fine\n{text}")
    assert f"{OTHER} from a library that the program has loaded itself; keep one of them" in printed


def test_what_is_no_library_is_refused(tmp_path):
    empty, text, none = tmp_path / "empty.so", tmp_path / "text.so", tmp_path / "none.so"
    empty.write_bytes(b"")
    text.write_bytes(b"no library")
    cases = {
        str(empty): "works here",
        str(text): "works here",
        str(none): "is not a file",
        "none": "unset it",
    }
    with suppress(RoastError):
        cases[ort_library_path()] = "works here"
    printed = run_python(f"""
import os
for path in {list(cases)!r}:
    os.environ["ROAST_TORCH_LIBRARY"] = path
    print(package().replace(chr(10), " "))
""").split("\n")
    for line, (path, text) in zip(printed, cases.items(), strict=True):
        assert line.startswith("RoastError ")
        assert path in line
        assert text in line


def test_the_library_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("ROAST_TORCH_LIBRARY", "none")
    with pytest.raises(RoastError, match="unset it"):
        torch_library_path()


# ---- What the file needs ----

TORCH_2_10 = {
    f"aoti_torch_{name}"
    for name in (
        *("copy_", "delete_library_object", "delete_tensor_object", "device_type_cpu", "dtype_bfloat16"),
        *("dtype_float16", "dtype_float32", "dtype_float64", "dtype_int32", "dtype_int64", "empty_strided"),
        *("get_device_type", "get_dim", "get_dtype", "get_numel", "get_sizes", "is_contiguous"),
        *("library_def", "library_init_def", "library_init_fragment", "library_init_impl"),
    )
} | {
    f"torch_{name}"
    for name in (
        *("call_dispatcher", "delete_list", "delete_string", "get_const_data_ptr", "get_mutable_data_ptr"),
        *("library_impl", "list_get_item", "list_size", "new_string_handle", "parallel_for", "string_c_str"),
    )
}
C = {"memcmp", "memcpy", "memmove", "memset", "pthread_mutex_lock", "pthread_mutex_unlock"}
CXX = (
    r"__cxa_\w+|__gxx_personality_v0|_Unwind_Resume|_Zn\w+|_Zd\w+|_ZSt7nothrow|_ZSt20__throw_system_errori"
    r"|_Z(NSt|TISt)1[23](out_of_range|runtime_error)\w*"
)
WEAK = {"torch_exception_get_what_without_backtrace", "__gmon_start__"} | {
    f"_ITM_{verb}TMCloneTable" for verb in ("register", "deregister")
}


def unexpected(listing: str) -> list[str]:
    """What nm lists that neither torch 2.10 nor the C and C++ basics have; what is (w)eak may be missing."""
    found = [(line.split()[-2], line.split()[-1].split("@")[0]) for line in listing.splitlines()]
    needed = [
        name for kind, name in found if not (kind == "w" and (name in WEAK or name.startswith("__cxa")))
    ]
    return [name for name in needed if name not in TORCH_2_10 | C and not re.fullmatch(CXX, name)]


def listing_of(*command: str) -> str:
    if shutil.which(command[0]) is None or sys.platform != "linux":
        pytest.skip(f"needs {command[0]} and ELF")
    return subprocess.run([*command, PATH], capture_output=True, text=True, check=True).stdout


def test_the_library_needs_the_stable_abi_alone():
    listing = listing_of("nm", "-D", "--undefined-only")
    if re.search("__[at]san_", listing):
        pytest.skip("a sanitizer has symbols of its own")
    assert "torch_library_impl" in listing
    assert unexpected(listing) == []


def test_the_library_shows_its_c_interface_alone():
    shown = [line.split()[-1] for line in listing_of("nm", "-D", "--defined-only").splitlines()]
    assert "roast_torch_status" in shown
    assert [name for name in shown if not name.startswith("roast_")] == []


def test_the_library_finds_torch_by_name():
    listing = listing_of("objdump", "-p")
    assert re.search(r"NEEDED +libtorch_cpu\.so\n", listing)
    assert "RPATH" not in listing
    assert "RUNPATH" not in listing


@pytest.mark.parametrize(
    "line",
    [
        "U _ZN2at5emptyEv",
        "U aoti_torch_mm_out",
        "U torch_exception_get_what_without_backtrace",
        "w torch_new_stable_ivalue",
        "U fopen@GLIBC_2.2.5",
    ],
)
def test_control_another_symbol_is_refused(line):
    assert unexpected(f"                 {line}\n")
