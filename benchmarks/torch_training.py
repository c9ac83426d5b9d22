"""SiMaN's training step in PyTorch, which `training` compares this project with.

It has the mathematics of the paper (arXiv 2102.07981) in float32, written for speed:

- Convolutions take the kernel (2b - 1) * alpha, so that alpha needs no pass over the activations;
  except before a max pool, which has to see which sums are equal.
- Samples are standardized by `group_norm` with one group, and a constant factor corrects its biased
  variance; this is one operation in the channels-last memory format.
- Signs and PReLU have their own autograd functions, made of operations that PyTorch vectorizes.
- Percentiles come from `topk` and `kthvalue`, medians from `median`; nothing is sorted, and the
  host does not wait for results.
- SGD is PyTorch's own, fused.

Arrays have the names and shapes that `siman_jax.pytorch.names.variables_from_torch` takes.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.float_networks import PaddedShortcut

EPSILON = 1e-5


class _ApproxSign(torch.autograd.Function):
    """Sign of x, which is +1 at 0; backward: g * factor * max(0, 2 - 2 |factor * x|)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return torch.copysign(x.new_ones(()), x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        slope = x.abs().mul_(-2 * ctx.factor**2).add_(2 * ctx.factor).clamp_min_(0)
        return slope.mul_(g), None


class _MagnitudeCode(torch.autograd.Function):
    """+1 where |u| is above the filter's lower median of it, else -1; backward: g * sign(u)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        magnitude = u.abs()
        median = magnitude.flatten(1).median(1).values[:, None, None, None]
        return torch.copysign(u.new_ones(()), median - magnitude).neg_()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return g * u.sign()


class _Prelu(torch.autograd.Function):
    """PReLU; with channels last, PyTorch does not vectorize the backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return functional.prelu(x, slope)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        above = torch.ops.aten.threshold_backward(g, x, 0)  # g where x > 0, else 0
        below = g - above
        dx = above.addcmul_(below, slope[:, None, None])
        return dx, below.mul_(x).sum((0, 2, 3))


def binary_activation(x: Tensor) -> Tensor:
    """Standardize each sample with an unbiased variance, and take signs by `approx_sign`."""
    n = x[0].numel()
    share = (n - 1) / n
    # (x - mean) / sqrt(biased + share * epsilon), which is 1 / sqrt(share) times the result.
    return _ApproxSign.apply(functional.group_norm(x, 1, eps=share * EPSILON), math.sqrt(share))


def binary_kernel(weight: Tensor) -> Tensor:
    """Standardize each filter with an unbiased variance; return its half-half code, -1 or +1."""
    variance, mean = torch.var_mean(weight, (1, 2, 3), correction=1, keepdim=True)
    return _MagnitudeCode.apply((weight - mean) * torch.rsqrt(variance + EPSILON))


class PReLU(nn.Module):
    """max(x, 0) + slope * min(x, 0), with one learned slope per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, channels, height, width]` to the same shape."""
        return _Prelu.apply(x, self.weight)


class BinaryConv(nn.Module):
    """conv(sign(standardized x), 2b - 1) * alpha.

    Alpha scales the kernel; if `pooled`, it scales the output, so that equal sums stay equal and
    max pooling finds the first.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        size: int = 3,
        strides: int = 1,
        *,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        fan_in = channels * size**2
        self.weight = nn.Parameter(
            torch.randn(features, channels, size, size) * (2 / fan_in) ** 0.5
        )
        self.alpha = nn.Parameter(torch.full((features, 1, 1), 0.5 * fan_in**-0.5))
        self.strides, self.padding, self.pooled = strides, size // 2, pooled

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, in, height, width]` to `[batch, features, height', width']`."""
        kernel = binary_kernel(self.weight)
        if not self.pooled:
            kernel = kernel * self.alpha[:, None]
        y = functional.conv2d(
            binary_activation(x), kernel, stride=self.strides, padding=self.padding
        )
        return y * self.alpha if self.pooled else y


@torch.no_grad()
def project(weight: Tensor, percent: float) -> None:
    """Centre each filter, then clip magnitudes to the layer's percentiles, in place."""
    weight -= weight.mean((1, 2, 3), keepdim=True)
    magnitude = weight.abs()
    # In memory order, which needs no copy.
    low, high = percentiles(magnitude.permute(0, 2, 3, 1).reshape(-1), percent)
    weight.sign_().mul_(magnitude.clamp_(low, high))


def percentiles(x: Tensor, percent: float) -> tuple[Tensor, Tensor]:
    """Compute percentiles `percent` and 100 - `percent` of flat `x`, interpolated linearly."""
    position = percent / 100 * (len(x) - 1)
    rank, weight = int(position), position - int(position)
    # The two largest of the smallest rank + 2 numbers, and likewise at the other end.
    found = []
    for largest in (False, True):
        tail = x.topk(min(rank + 2, len(x)), largest=largest, sorted=False).values
        outer = tail.kthvalue(2 if largest else len(tail) - 1).values
        inner = tail.min() if largest else tail.max()
        found.append(torch.lerp(outer, inner, weight))
    return found[0], found[1]


class TwoShortcutBlock(nn.Module):
    """Two times convolution, batch norm, + shortcut, PReLU."""

    def __init__(self, channels: int, features: int, strides: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = BinaryConv(channels, features, strides=strides)
        self.bn1 = nn.BatchNorm2d(features)
        self.nonlinear1 = PReLU(features)
        self.conv2 = BinaryConv(features, features)
        self.bn2 = nn.BatchNorm2d(features)
        self.nonlinear2 = PReLU(features)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, in, height, width]` to `[batch, features, height', width']`."""
        x = self.nonlinear1(self.bn1(self.conv1(x)) + self.shortcut(x))
        return self.nonlinear2(self.bn2(self.conv2(x)) + x)


class OneShortcutBlock(nn.Module):
    """Convolution, batch norm, hardtanh, convolution, batch norm, + shortcut, hardtanh."""

    def __init__(self, channels: int, features: int, strides: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = BinaryConv(channels, features, strides=strides)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = BinaryConv(features, features)
        self.bn2 = nn.BatchNorm2d(features)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, in, height, width]` to `[batch, features, height', width']`."""
        y = functional.hardtanh(self.bn1(self.conv1(x)))
        return functional.hardtanh(self.bn2(self.conv2(y)) + self.shortcut(x))


def _padded(channels: int, features: int, strides: int) -> nn.Module:
    del strides
    return PaddedShortcut(features - channels)


def _binary(channels: int, features: int, strides: int) -> nn.Module:
    return nn.Sequential(BinaryConv(channels, features, 1, strides), nn.BatchNorm2d(features))


def _real(channels: int, features: int, strides: int) -> nn.Module:
    conv = nn.Conv2d(channels, features, 1, strides, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(features))


class ResNet(nn.Module):
    """Residual network: stem, stages of blocks, average pooling, batch norm, classifier."""

    def __init__(
        self,
        num_classes: int,
        width: int,
        stages: tuple[int, ...],
        block: Any,
        shortcut: Any,
        stem: nn.Module,
        stem_activation: nn.Module,
    ) -> None:
        super().__init__()
        self.conv1 = stem
        self.bn1 = nn.BatchNorm2d(width)
        self.stem_activation = stem_activation
        channels = width
        for stage, blocks in enumerate(stages):
            features = width * 2**stage
            layers = []
            for index in range(blocks):
                strides = 2 if stage > 0 and index == 0 else 1
                changes = strides > 1 or channels != features
                way = shortcut(channels, features, strides) if changes else nn.Identity()
                layers.append(block(channels, features, strides, way))
                channels = features
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.stages = len(stages)
        self.bn2 = nn.BatchNorm1d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images `[batch, 3, height, width]` to logits `[batch, classes]`."""
        x = self.stem_activation(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.linear(self.bn2(x.mean((2, 3))))


class VggSmall(nn.Module):
    """Convolutions with batch norm and PReLU, a 2x2 max pool after every second; classifier."""

    def __init__(self, num_classes: int, width: int, image_size: int) -> None:
        super().__init__()
        channels = 3
        for index in range(6):
            features = width * 2 ** (index // 2)
            conv: nn.Module = BinaryConv(channels, features, pooled=index % 2 == 1)
            if index == 0:
                conv = nn.Conv2d(channels, features, 3, 1, 1, bias=False)
            setattr(self, f"conv{index}", conv)
            setattr(self, f"bn{index}", nn.BatchNorm2d(features))
            setattr(self, f"nonlinear{index}", PReLU(features))
            channels = features
        self.fc = nn.Linear(channels * (image_size // 8) ** 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images `[batch, 3, height, width]` to logits `[batch, classes]`."""
        for index in range(6):
            x = getattr(self, f"conv{index}")(x)
            if index % 2 == 1:
                x = functional.max_pool2d(x, 2)
            x = getattr(self, f"nonlinear{index}")(getattr(self, f"bn{index}")(x))
        return self.fc(x.flatten(1))


def build_network(name: str, num_classes: int, width: int, image_size: int) -> nn.Module:
    """Build one of `siman_jax.models.MODELS`, in the channels-last memory format."""

    def small_stem() -> nn.Module:
        return nn.Conv2d(3, width, 3, 1, 1, bias=False)

    def imagenet(stages: tuple[int, ...]) -> nn.Module:
        stem = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        activation = nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        return ResNet(num_classes, width, stages, TwoShortcutBlock, _real, stem, activation)

    network = {
        "cifar.resnet20_1w1a": lambda: ResNet(
            num_classes, width, (3, 3, 3), TwoShortcutBlock, _padded, small_stem(), nn.ReLU()
        ),
        "cifar.resnet18_1w1a": lambda: ResNet(
            num_classes, width, (2, 2, 2, 2), OneShortcutBlock, _binary, small_stem(), nn.Identity()
        ),
        "cifar.vgg_small_1w1a": lambda: VggSmall(num_classes, width, image_size),
        "imagenet.resnet18_1w1a": lambda: imagenet((2, 2, 2, 2)),
        "imagenet.resnet34_1w1a": lambda: imagenet((3, 4, 6, 3)),
    }[name]()
    if name.startswith("imagenet"):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 1e-8)
    return network.to(memory_format=torch.channels_last)


class Training:
    """A network, its optimizer and one batch, all on one device.

    Args:
      network: from `build_network`.
      images: normalized, `[batch, 3, height, width]`.
      labels: `[batch]`.
      learning_rate, weight_decay: of SGD.
      percent: of the projection.
      autocast: dtype for PyTorch's autocast; None for the network's own dtype.
      compiled: use `torch.compile`.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        learning_rate: float = 0.1,
        weight_decay: float,
        percent: float = 10.0,
        autocast: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        self.network = network
        self._images = images.contiguous(memory_format=torch.channels_last)
        self._labels, self._percent = labels, percent
        self._convs = [m for m in network.modules() if isinstance(m, BinaryConv)]
        undecayed = {id(p) for conv in self._convs for p in conv.parameters()}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in network.parameters() if id(p) in undecayed], "weight_decay": 0},
            {"params": [p for p in network.parameters() if id(p) not in undecayed]},
        ]
        self._optimizer = torch.optim.SGD(
            groups, learning_rate, momentum=0.9, weight_decay=weight_decay, fused=True
        )
        self._autocast = autocast
        self._loss = torch.compile(self._mean_loss) if compiled else self._mean_loss

    def _mean_loss(self) -> Tensor:
        with torch.autocast(
            self._images.device.type, self._autocast, enabled=self._autocast is not None
        ):
            return functional.cross_entropy(self.network(self._images), self._labels)

    def step(self) -> Tensor:
        """Project the binary kernels, compute gradients, update; return the loss before that."""
        for conv in self._convs:
            project(conv.weight, self._percent)
        self._optimizer.zero_grad()
        loss = self._loss()
        loss.backward()
        self._optimizer.step()
        return loss.detach()
