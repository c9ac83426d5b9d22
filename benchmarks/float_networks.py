"""Ordinary float networks in PyTorch, as in torchvision and He et al., with ReLU.

Each block has two convolutions, batch norms and one shortcut. Parameters are random, since speed
does not depend on them. For 32x32 images, ResNet-20 has zero-padded shortcuts, as in section 4.2 of
He et al. (arXiv 1512.03385), and ResNet-18 has 1x1 convolutions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class PaddedShortcut(nn.Module):
    """Subsample in space, and pad with channels of zeros."""

    def __init__(self, missing: int) -> None:
        super().__init__()
        self.missing = missing

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, in, height, width]` to half the size and `missing` channels more."""
        half = self.missing // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.missing - half))


class BasicBlock(nn.Module):
    """Convolution, batch norm, ReLU, convolution, batch norm, + shortcut, ReLU."""

    def __init__(self, channels: int, features: int, strides: int, *, padded: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, strides, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.shortcut: nn.Module = nn.Identity()
        if channels != features and padded:
            self.shortcut = PaddedShortcut(features - channels)
        elif channels != features:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, features, 1, strides, bias=False), nn.BatchNorm2d(features)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, in, height, width]` to `[batch, features, height', width']`."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def _resnet(
    stages: tuple[int, ...], num_classes: int, width: int, *, imagenet_stem: bool, padded: bool
) -> nn.Module:
    size, strides = (7, 2) if imagenet_stem else (3, 1)
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, size, strides, size // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    if imagenet_stem:
        layers.append(nn.MaxPool2d(3, 2, 1))
    channels = width
    for stage, blocks in enumerate(stages):
        for index in range(blocks):
            features = width * 2**stage
            strides = 2 if stage > 0 and index == 0 else 1
            layers.append(BasicBlock(channels, features, strides, padded=padded))
            channels = features
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    return nn.Sequential(*layers)


def _vgg_small(num_classes: int, width: int, image_size: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for index in range(6):
        features = width * 2 ** (index // 2)
        layers.append(nn.Conv2d(channels, features, 3, 1, 1, bias=False))
        if index % 2 == 1:
            layers.append(nn.MaxPool2d(2))
        layers += [nn.BatchNorm2d(features), nn.ReLU()]
        channels = features
    layers += [nn.Flatten(), nn.Linear(channels * (image_size // 8) ** 2, num_classes)]
    return nn.Sequential(*layers)


def build_float_network(name: str, num_classes: int, width: int, image_size: int) -> nn.Module:
    """Build a float network with the depth and width of one of `siman_jax.models.MODELS`."""
    network = {
        "cifar.resnet20_1w1a": lambda: _resnet(
            (3, 3, 3), num_classes, width, imagenet_stem=False, padded=True
        ),
        "cifar.resnet18_1w1a": lambda: _resnet(
            (2, 2, 2, 2), num_classes, width, imagenet_stem=False, padded=False
        ),
        "cifar.vgg_small_1w1a": lambda: _vgg_small(num_classes, width, image_size),
        "imagenet.resnet18_1w1a": lambda: _resnet(
            (2, 2, 2, 2), num_classes, width, imagenet_stem=True, padded=False
        ),
    }[name]()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            statistics = dict(module.named_buffers())
            with torch.no_grad():
                for gain in (statistics["running_var"], module.weight):
                    gain.uniform_(0.5, 1.5)
                for offset in (statistics["running_mean"], module.bias):
                    offset.normal_(0, 0.1)
    return network
