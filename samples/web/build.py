"""Collect a page that recognises digits into one folder: page, model, settings, onnxruntime-web.

    python samples/digits.py && python samples/web/build.py --model out/digits.onnx -o out/web
    python -m http.server -d out/web

Any web server can serve the folder; nothing in it comes from the network.
"""

import argparse
import shutil
import sys
from pathlib import Path

from roast_export import runtime_web, to_web

HERE = Path(__file__).parent
PAGE = ("index.html", "app.mjs", "image.mjs")
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm", "ort-wasm-simd-threaded.mjs")


def build(model: Path, folder: Path) -> None:
    """Raises RoastError where the model has no form for browsers; FileNotFoundError without the package."""
    (folder / "ort").mkdir(parents=True, exist_ok=True)
    to_web.write(model, folder / "digits.onnx")
    for name in PAGE:
        shutil.copyfile(HERE / name, folder / name)
    for name in RUNTIME:
        shutil.copyfile(runtime_web.package_folder() / name, folder / "ort" / name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("out/digits.onnx"))
    parser.add_argument("-o", "--out", type=Path, default=Path("out/web"))
    options = parser.parse_args()
    package = runtime_web.package_folder()
    for path, command in ((options.model, "make demo"), (package, "make mobile")):
        if not path.exists():
            print(f"{path} is missing; run `{command}`")
            return 1
    build(options.model, options.out)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 2**20:.1f} MiB, of which the model {options.model.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
