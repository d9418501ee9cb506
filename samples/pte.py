"""One model in the four kinds of .pte: native and portable, with XNNPACK and without.

Its convolutions are never compressed, so that there is something for XNNPACK to take over; its large
layer is virtual. What a run costs is what the reports say, on one thread.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

import roast_export


class Seen(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.inner = nn.Linear(32 * 16 * 16, 64)
        self.outer = nn.Linear(64, 10)

    def forward(self, x):
        for conv in (self.conv1, self.conv2, self.conv3):
            x = torch.relu(conv(x))
        x = torch.max_pool2d(x, 2).flatten(1)
        return self.outer(torch.relu(self.inner(x)))


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("out"))
    parser.add_argument("--form", choices=["native", "portable"], help="default: both")
    parser.add_argument("--delegate", choices=["none", "xnnpack"], help="default: one file for each")
    arguments = parser.parse_args()
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = roast_export.compress(Seen().eval(), ratio=20, exclude=["conv*"])
    image = (torch.randn(1, 3, 32, 32),)
    for portable in {"native": [False], "portable": [True]}.get(arguments.form, [False, True]):
        for delegate in [arguments.delegate] if arguments.delegate else ["none", "xnnpack"]:
            form = f"{'portable' if portable else 'native'}{'-xnnpack' if delegate == 'xnnpack' else ''}"
            report = roast_export.export(
                model,
                folder / f"{form}.pte",
                to="executorch",
                example_inputs=image,
                portable=portable,
                delegate=None if delegate == "none" else delegate,
            )
            weights = sum(
                c.elements for c in report.checks if c.name == "inner.weight" and c.kind == "weight"
            )
            for cost in report.measurements:
                print(
                    f"{form:18}{report.file_bytes:9,} bytes{1e3 * cost.run_seconds:8.1f} ms a run, "
                    f"{weights:,} elements of weights compared in {cost.path}"
                )


if __name__ == "__main__":
    main()
