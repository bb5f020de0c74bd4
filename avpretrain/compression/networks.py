"""Convolutional networks to compress: MobileNetV1 here, others from torchvision where it is installed."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from avpretrain.core.errors import UsageError, UserError

FROM_TORCHVISION = ("mobilenet_v2", "resnet18", "efficientnet_b0")
STAGES = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
    (1024, 2), (1024, 1),
)  # fmt: skip
"""MobileNetV1's separable convolutions: output channels at width 1, stride (arXiv 1704.04861, table 1)."""


class MobileNetV1(nn.Sequential):
    """Depthwise separable convolutions (arXiv 1704.04861): [B, classes] of [B, channels, H, W].

    Args:
        width: multiplier of all channels.
        channels: colours of the input.
        stem_stride: of the first convolution; 1 for small images.
    """

    def __init__(self, classes: int = 1000, width: float = 1.0, channels: int = 3, stem_stride: int = 2) -> None:
        before = int(32 * width)
        layers = [_conv(channels, before, 3, stem_stride)]
        for base, stride in STAGES:
            after = int(base * width)
            layers += [_conv(before, before, 3, stride, groups=before), _conv(before, after, 1, 1)]
            before = after
        pool, classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(before, classes)
        super().__init__(nn.Sequential(*layers), pool, nn.Flatten(), classifier)


def _conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


SMALL = ("mobilenet_v1", "mobilenet_v2", "resnet18")
"""What `build_small` knows."""


def build_small(name: str, classes: int, width: float) -> nn.Module:
    """A network for images of one colour, its channels multiplied by `width`; random weights.

    Raises:
        UsageError: there is none of that name, or it has no such width.
        UserError: torchvision is missing.
    """
    if name == "mobilenet_v1":
        return MobileNetV1(classes, width, channels=1)
    if name not in SMALL:
        raise UsageError(f"no small network '{name}'; known: {', '.join(SMALL)}")
    models = _torchvision(name)
    if name == "mobilenet_v2":
        net = models.mobilenet_v2(num_classes=classes, width_mult=width)
        old = net.features[0][0]
        net.features[0][0] = nn.Conv2d(1, old.out_channels, 3, 2, 1, bias=False)
        return net
    if width != 1:
        raise UsageError("resnet18 comes in --width 1 alone")
    net = models.resnet18(num_classes=classes)
    net.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return net


def build(name: str, classes: int = 1000) -> nn.Module:
    """A network with random weights.

    Raises:
        UsageError: there is none of that name.
        UserError: torchvision is missing.
    """
    if name == "mobilenet_v1":
        return MobileNetV1(classes)
    if name not in FROM_TORCHVISION:
        raise UsageError(f"no network '{name}'; known: mobilenet_v1, {', '.join(FROM_TORCHVISION)}")
    return getattr(_torchvision(name), name)(num_classes=classes)


def _torchvision(name: str) -> Any:
    try:
        return importlib.import_module("torchvision.models")
    except ImportError:
        raise UserError(f"{name} needs the package torchvision; pip install torchvision") from None
