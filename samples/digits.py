"""Train a digits classifier 20x smaller, export it with the command line, and compare it with a dense one.

`make demo` runs this. It leaves out/digits.pt, out/digits.onnx (or what --to asks for) and out/digits.html.
"""

import argparse
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.jit.mobile
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import roast_export

EPOCHS, BATCH, LEARNING_RATE = 30, 64, 3e-3
MAX_GAP = 2.0
"""Points of test accuracy that compression may cost."""

SUFFIXES = {"onnx": ".onnx", "torchscript": ".ts", "lite": ".ptl", "pt2": ".pt2"}
"""Formats that this sample opens again."""


class Classifier(nn.Module):
    """8x8 images float32[batch, 64] in, scores float32[batch, 10] out."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)
        )

    def forward(self, x):
        return self.layers(x)


def data(seed=0):
    """Train and test images and labels: 1347 and 450 of scikit-learn's bundled digits."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    split = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=seed)
    return [torch.from_numpy(part) for part in split]


def train(model, images, labels, seed):
    """The same budget for every model."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            if len(batch) < BATCH:
                continue
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def train_both(ratio, seed=0):
    """A dense model and a compressed one from the same start, and the test data."""
    images, test_images, labels, test_labels = data()
    torch.manual_seed(seed)
    dense = Classifier()
    small = roast_export.compress(dense, ratio, init="fresh", seed=seed)
    train(dense, images, labels, seed)
    train(small, images, labels, seed)
    return dense, small, test_images, test_labels


def accuracy(scores, labels):
    """Percent of scores whose largest is the label's."""
    return 100 * float((torch.as_tensor(scores).argmax(1) == labels).float().mean())


def scores_of(model, images):
    with torch.no_grad():
        return model(images)


def main_command(archive, file, to, portable):
    """What a user types; its exit status is ours."""
    command = [str(Path(sysconfig.get_path("scripts")) / "roast-export"), str(archive), "--to", to]
    command += ["-o", str(file), "--dynamic", "x:0=batch"]
    command += ["--report", str(file.with_suffix(".html"))] + ["--portable"] * portable
    print("$ roast-export", *command[1:], flush=True)
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(status)


def opened(file, to):
    """Functions of images, by what runs the file."""
    if to == "torchscript":
        return {"TorchScript": torch.jit.load(str(file))}
    if to == "lite":
        return {"lite interpreter": torch.jit.mobile._load_for_lite_interpreter(str(file))}
    if to == "pt2":
        return {"torch.export": torch.export.load(file).module()}

    def runner(session):
        return lambda images: torch.from_numpy(session.run(None, {"x": images.numpy()})[0])

    return {
        "ONNX Runtime, native operators": runner(roast_export.create_session(file)),
        "ONNX Runtime, no library": runner(
            onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        ),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratio", type=float, default=20, help="virtual weights per array slot")
    parser.add_argument("--to", choices=list(SUFFIXES), default="onnx", help="format of the file")
    parser.add_argument("--portable", action="store_true", help="a file that needs no library")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the files")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    dense, small, images, labels = train_both(options.ratio)
    print(roast_export.summary(small))
    roast_export.save(small, options.out / "digits.pt", (images[:2],))
    file = options.out / f"digits{SUFFIXES[options.to]}"
    main_command(options.out / "digits.pt", file, options.to, options.portable)

    expected = scores_of(small, images)
    reference = accuracy(scores_of(dense, images), labels)
    rows = [
        ("dense, PyTorch", dense, reference, 0.0),
        ("ROAST, PyTorch", small, accuracy(expected, labels), 0.0),
    ]
    for name, run in opened(file, options.to).items():
        scores = scores_of(run, images)
        rows.append(
            (f"ROAST, {name}", small, accuracy(scores, labels), float((scores - expected).abs().max()))
        )

    print(f"{'':38}{'parameters':>11}{'bytes':>9}{'accuracy':>10}{'difference':>12}")
    for name, model, percent, difference in rows:
        parameters = sum(p.numel() for p in model.parameters())
        size = 4 * parameters if "PyTorch" in name else file.stat().st_size
        print(f"{name:38}{parameters:>11,}{size:>9,}{percent:>9.2f}%{difference:>12.1e}")
    gap = max(reference - percent for _, _, percent, _ in rows)
    print(f"{len(labels)} test images; bytes of weights in PyTorch, of the file in other runtimes;")
    print(
        f"largest loss of accuracy {gap:.2f} points, {MAX_GAP:.0f} allowed; see {file.with_suffix('.html')}"
    )
    return int(gap > MAX_GAP)


if __name__ == "__main__":
    sys.exit(main())
