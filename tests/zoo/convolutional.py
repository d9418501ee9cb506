"""Convolutional networks, as people write them in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.architecture import ALL_FORMS, FLATTENED, Arguments, Draw, architecture

BATCHES = ((2, 0), (3, 0), (1, 0))
SIDES = ((2, 32), (3, 48), (1, 24))


def image(side: int = 0, channels: int = 3) -> Callable[[Draw, int, int], Arguments]:
    """Images of one side, or of the second number of `sizes`."""

    def inputs(draw: Draw, batch: int, length: int) -> Arguments:
        return (draw.floats(batch, channels, side or length, side or length),)

    return inputs


def conv(
    cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: str = "relu"
) -> nn.Module:
    acts: dict[str, nn.Module] = {
        "relu": nn.ReLU(inplace=True),
        "relu6": nn.ReLU6(inplace=True),
        "hswish": nn.Hardswish(),
        "silu": nn.SiLU(),
        "none": nn.Identity(),
    }
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
        acts[act],
    )


@architecture("lenet", image(28, 1), sizes=BATCHES, fixed=FLATTENED, forms=ALL_FORMS)
class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.tanh(self.conv1(x)), 2)
        x = functional.max_pool2d(torch.tanh(self.conv2(x)), (2, 2))
        x = x.view(-1, 16 * 5 * 5)
        return functional.log_softmax(self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x))))), dim=1)


class BasicBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(cin, cout, 3, stride)
        self.conv2 = conv(cout, cout, 3, 1, act="none")
        self.downsample = conv(cin, cout, 1, stride, act="none") if stride > 1 or cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return functional.relu(self.conv2(self.conv1(x)) + identity)


@architecture("resnet", image(), sizes=SIDES, forms=ALL_FORMS)
class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.layers = nn.Sequential(BasicBlock(16, 16, 1), BasicBlock(16, 32, 2), BasicBlock(32, 64, 2))
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(64, 100)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.layers(self.stem(x))), 1))


@architecture("vgg", image(32), sizes=BATCHES, fixed=FLATTENED)
class Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        cin = 3
        for item in (16, "M", 32, "M", 48, 48, "M"):
            if isinstance(item, str):
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(cin, item, 3, padding=1), nn.BatchNorm2d(item), nn.ReLU(True)]
                cin = item
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(48 * 16, 128),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(128, 128),
            nn.ReLU(True),
            nn.Linear(128, 20),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.expand(functional.relu(self.reduce(pooled))))


class Inverted(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, factor: int, act: str, excite: bool) -> None:
        super().__init__()
        hidden = cin * factor
        self.use_res_connect = stride == 1 and cin == cout
        parts = [conv(cin, hidden, 1, act=act), conv(hidden, hidden, 3, stride, hidden, act)]
        if excite:
            parts.append(SqueezeExcite(hidden, nn.Hardsigmoid if act == "hswish" else nn.Sigmoid))
        self.conv = nn.Sequential(*parts, conv(hidden, cout, 1, act="none"))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


def mobile(act: str, excite: bool) -> nn.Module:
    blocks = [Inverted(16, 16, 1, 2, act, excite), Inverted(16, 24, 2, 4, act, excite)]
    blocks += [Inverted(24, 24, 1, 4, act, excite), Inverted(24, 40, 2, 4, act, excite)]
    head = [
        conv(40, 96, 1, act=act),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(96, 30),
    ]
    return nn.Sequential(conv(3, 16, 3, 2, act=act), *blocks, *head)


@architecture("mobilenet_v2", image(), sizes=SIDES, min_params=256, forms=ALL_FORMS)
def mobilenet_v2() -> nn.Module:
    return mobile("relu6", False)


@architecture("mobilenet_v3", image(), sizes=SIDES, min_params=256, forms=ALL_FORMS)
def mobilenet_v3() -> nn.Module:
    return mobile("hswish", True)


@architecture("efficientnet", image(), sizes=SIDES, min_params=256)
def efficientnet() -> nn.Module:
    return mobile("silu", True)


class DenseLayer(nn.Module):
    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(cin), nn.Conv2d(cin, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = (
            nn.BatchNorm2d(4 * growth),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(functional.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(functional.relu(self.norm2(x)))


@architecture("densenet", image(), sizes=SIDES)
class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1, stride=2)
        self.layers = nn.ModuleDict({f"denselayer{k}": DenseLayer(24 + 12 * k, 12) for k in range(4)})
        self.norm = nn.BatchNorm2d(24 + 48)
        self.classifier = nn.Linear(72, 50)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers.values():
            features.append(layer(features))
        x = functional.relu(self.norm(torch.cat(features, 1)))
        return self.classifier(functional.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


class Fire(nn.Module):
    def __init__(self, cin: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(cin, squeeze, 1)
        self.expand1x1, self.expand3x3 = (
            nn.Conv2d(squeeze, expand, 1),
            nn.Conv2d(squeeze, expand, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.expand1x1(x)), torch.relu(self.expand3x3(x))], 1)


@architecture("squeezenet", image(), sizes=SIDES, forms=ALL_FORMS)
def squeezenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(32, 16, 32),
        Fire(64, 16, 48),
        nn.Conv2d(96, 40, 1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )


class ShuffleUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv(half, half, 1), conv(half, half, 3, 1, half, "none"), conv(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        out = torch.cat((first, self.branch(second)), dim=1)
        batch, channels, height, width = out.size()
        out = out.view(batch, 2, channels // 2, height, width)
        return torch.transpose(out, 1, 2).contiguous().view(batch, -1, height, width)


@architecture("shufflenet", image(), sizes=SIDES, min_params=512)
def shufflenet() -> nn.Module:
    units = [ShuffleUnit(64) for _ in range(3)]
    return nn.Sequential(conv(3, 64, 3, 2), *units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 32))


@architecture("unet", image(channels=1), sizes=SIDES, forms=ALL_FORMS)
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = self.block(1, 16), self.block(16, 32), self.block(32, 48)
        self.up2, self.up1 = nn.ConvTranspose2d(48, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.dec2, self.dec1 = self.block(64, 32), self.block(32, 16)
        self.out = nn.Conv2d(16, 3, 1)

    @staticmethod
    def block(cin: int, cout: int) -> nn.Module:
        return nn.Sequential(conv(cin, cout), conv(cout, cout))

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(functional.max_pool2d(first, 2))
        x = self.middle(functional.max_pool2d(second, 2))
        x = self.dec2(torch.cat([self.up2(x), second], 1))
        return self.out(self.dec1(torch.cat([self.up1(x), first], 1)))


@architecture("super_resolution", image(channels=1), sizes=((2, 16), (3, 20), (1, 12)), forms=ALL_FORMS)
class SuperResolution(nn.Module):
    """ESPCN: convolutions and a pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 5, padding=2), nn.Conv2d(32, 32, 3, padding=1)
        self.conv3, self.shuffle = nn.Conv2d(32, 9, 3, padding=1), nn.PixelShuffle(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.shuffle(self.conv3(torch.tanh(self.conv2(torch.tanh(self.conv1(x)))))))


@architecture("feature_pyramid", image(), sizes=SIDES)
class FeaturePyramid(nn.Module):
    """Returns a dict of maps, as detection models do."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(3, 24, 3, 2), conv(24, 48, 3, 2), conv(48, 64, 3, 2)])
        self.inner = nn.ModuleList([nn.Conv2d(c, 32, 1) for c in (24, 48, 64)])
        self.outer = nn.ModuleList([nn.Conv2d(32, 32, 3, padding=1) for _ in range(3)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        last = self.inner[-1](maps[-1])
        found = {"p2": self.outer[-1](last)}
        for k in (1, 0):
            up = functional.interpolate(last, size=maps[k].shape[-2:], mode="nearest")
            last = self.inner[k](maps[k]) + up
            found[f"p{k}"] = self.outer[k](last)
        return found


@architecture("yolo_head", image(), sizes=SIDES)
class Yolo(nn.Module):
    """Boxes are decoded with a grid that forward makes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 32, 3, 2), conv(32, 64, 3, 2), conv(64, 64, 3, 2))
        self.head = nn.Conv2d(64, 3 * 9, 1)
        self.register_buffer("anchors", torch.tensor([[10.0, 13.0], [16.0, 30.0], [33.0, 23.0]]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.body(x))
        batch, _, height, width = y.shape
        y = y.view(batch, 3, 9, height, width).permute(0, 1, 3, 4, 2).contiguous()
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack((columns, rows), 2).view(1, 1, height, width, 2).float()
        centre = (y[..., 0:2].sigmoid() * 2 - 0.5 + grid) * 8
        size = (y[..., 2:4].sigmoid() * 2) ** 2 * self.anchors.view(1, 3, 1, 1, 2)
        return torch.cat((centre, size, y[..., 4:].sigmoid()), -1).view(batch, -1, 9)


@architecture("spatial_transformer", image(28, 1), sizes=BATCHES, fixed=FLATTENED)
class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.localization = nn.Sequential(
            nn.Conv2d(1, 8, 7),
            nn.MaxPool2d(2, 2),
            nn.ReLU(True),
            nn.Conv2d(8, 10, 5),
            nn.MaxPool2d(2, 2),
            nn.ReLU(True),
        )
        self.fc_loc = nn.Sequential(nn.Linear(10 * 3 * 3, 32), nn.ReLU(True), nn.Linear(32, 6))
        self.fc = nn.Linear(28 * 28, 20)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.fc_loc(self.localization(x).view(-1, 90)).view(-1, 2, 3)
        theta = theta + torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
        grid = functional.affine_grid(theta, list(x.size()), align_corners=False)
        return self.fc(functional.grid_sample(x, grid, align_corners=False).flatten(1))


@architecture(
    "siamese",
    lambda d, b, n: (d.floats(b, 1, 28, 28), d.floats(b, 1, 28, 28)),
    sizes=BATCHES,
    fixed=FLATTENED,
)
class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.embed = nn.Linear(32 * 16, 64)

    def forward_one(self, x: Tensor) -> Tensor:
        return functional.normalize(self.embed(self.trunk(x)), dim=1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return functional.pairwise_distance(self.forward_one(left), self.forward_one(right))


@architecture("crnn", lambda d, b, n: (d.floats(b, 1, 32, 8 * n),), sizes=((2, 4), (3, 6), (1, 3)), ratio=8)
class Crnn(nn.Module):
    """Text in images: convolutions, then a bidirectional LSTM over the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(conv(1, 16), nn.MaxPool2d(2), conv(16, 32), nn.MaxPool2d(2), conv(32, 32))
        self.rnn = nn.LSTM(32 * 8, 48, bidirectional=True)
        self.fc = nn.Linear(96, 37)

    def forward(self, images: Tensor) -> Tensor:
        x = self.cnn(images)
        x = x.permute(3, 0, 1, 2).flatten(2)
        x, _ = self.rnn(x)
        return functional.log_softmax(self.fc(x), dim=2)
