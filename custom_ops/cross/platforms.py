"""The platforms that the ONNX Runtime library is built for, and what each needs from the compiler."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True)
class Platform:
    """One library: where it goes and how zig makes it."""

    name: str
    target: str
    file: str
    options: tuple[str, ...] = ()
    """For zig."""
    flags: tuple[str, ...] = ()
    """For the compiler."""
    sources: tuple[str, ...] = ()
    """Beside those that every platform has."""
    static: bool = False
    limit: int = 100 * KIB
    """Largest size; a library that outgrows it has taken in something that it should not."""


SHARED_OBJECT = "libroast_ort.so"
DYLIB = "libroast_ort.dylib"
DLL = "roast_ort.dll"

# The loader must not unload the library: sessions point at the operators (see CMakeLists.txt).
_ELF = (f"-fsoname={SHARED_OBJECT}", "-z", "nodelete")
# Android refuses segments that do not lie on pages of 16 KiB; Linux on ARM may have pages of 64 KiB.
_SEGMENTS = ("-z", "max-page-size=65536")
# Otherwise each atomic operation is a call of a library.
_ARM64 = ("-mno-outline-atomics",)
# Without NEON: on 32-bit ARM it flushes subnormal numbers to 0, and weights would not be exact.
_ARMV7 = ("-mcpu=generic+v7a+vfp3d16+thumb2",)
# Android passes floats in integer registers there, which zig takes for a processor without floats.
_SOFTFP = ("-mfloat-abi=softfp",)
# Three instruction sets in one library.
_X86_LIMIT = 352 * KIB
# Pages of 16 KiB in five segments, some of them almost empty.
_APPLE_LIMIT = 208 * KIB
_DYLIB = ("-install_name", f"@rpath/{DYLIB}")

PLATFORMS = (
    Platform("android-arm64-v8a", "aarch64-linux-android", SHARED_OBJECT, (*_ELF, *_SEGMENTS), _ARM64),
    Platform(
        "android-armeabi-v7a", "thumb-linux-androideabi", SHARED_OBJECT, (*_ELF, *_SEGMENTS, *_ARMV7),
        _SOFTFP,
    ),
    Platform("android-x86_64", "x86_64-linux-android", SHARED_OBJECT, (*_ELF, *_SEGMENTS), limit=_X86_LIMIT),
    Platform(
        "ios-arm64", "aarch64-ios.13.0", DYLIB, _DYLIB, sources=("cross/ios_bzero.cc",), limit=_APPLE_LIMIT,
    ),
    Platform("ios-arm64-static", "aarch64-ios.13.0", "libroast_ort.a", static=True, limit=_APPLE_LIMIT),
    Platform(
        "ios-arm64-simulator-static", "aarch64-ios.13.0-simulator", "libroast_ort.a", static=True,
        limit=_APPLE_LIMIT,
    ),
    Platform("linux-arm64", "aarch64-linux-gnu", SHARED_OBJECT, (*_ELF, *_SEGMENTS), _ARM64),
    Platform("linux-x86_64", "x86_64-linux-gnu", SHARED_OBJECT, _ELF, limit=_X86_LIMIT),
    Platform("macos-arm64", "aarch64-macos.11.0", DYLIB, _DYLIB, limit=_APPLE_LIMIT),
    Platform("macos-x86_64", "x86_64-macos.11.0", DYLIB, _DYLIB, limit=416 * KIB),
    Platform("windows-arm64", "aarch64-windows-gnu", DLL, sources=("cross/windows_entry.cc",)),
    Platform(
        "windows-x86_64", "x86_64-windows-gnu", DLL, sources=("cross/windows_entry.cc",), limit=416 * KIB,
    ),
)  # fmt: skip
