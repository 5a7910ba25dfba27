"""Convolutional networks that transformers does not have: a U-Net and MobileNetV3."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class _Squeeze(nn.Module):
    """Squeeze and excite: each channel is scaled by what all channels are on average."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(8, channels // 4)
        self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = functional.relu(self.down(functional.adaptive_avg_pool2d(x, 1)))
        return x * functional.hardsigmoid(self.up(scale))


class _Inverted(nn.Module):
    """An inverted residual: expanded, convolved channel by channel, squeezed, projected."""

    def __init__(self, taken: int, inner: int, given: int, kernel: int, stride: int, *, late: bool) -> None:
        super().__init__()
        act = nn.Hardswish if late else nn.ReLU
        self.adds = stride == 1 and taken == given
        self.body = nn.Sequential(
            nn.Conv2d(taken, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            act(),
            nn.Conv2d(inner, inner, kernel, stride, kernel // 2, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            act(),
            _Squeeze(inner),
            nn.Conv2d(inner, given, 1, bias=False),
            nn.BatchNorm2d(given),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return x + y if self.adds else y


class MobileNetV3(nn.Module):
    """MobileNetV3-Large's shape: images in, scores of a thousand classes out."""

    # inner, given, kernel, stride
    BLOCKS = (
        (16, 16, 3, 1),
        (64, 24, 3, 2),
        (72, 24, 3, 1),
        (72, 40, 5, 2),
        (120, 40, 5, 1),
        (120, 40, 5, 1),
        (240, 80, 3, 2),
        (200, 80, 3, 1),
        (184, 80, 3, 1),
        (184, 80, 3, 1),
        (480, 112, 3, 1),
        (672, 112, 3, 1),
        (672, 160, 5, 2),
        (960, 160, 5, 1),
        (960, 160, 5, 1),
    )

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        taken = 16
        for index, (inner, given, kernel, stride) in enumerate(self.BLOCKS):
            blocks.append(_Inverted(taken, inner, given, kernel, stride, late=index > 5))
            taken = given
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(nn.Conv2d(taken, 960, 1), nn.Hardswish())
        self.head = nn.Sequential(nn.Linear(960, 1280), nn.Hardswish(), nn.Linear(1280, 1000))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.last(self.blocks(self.first(images)))
        return self.head(x.mean((2, 3)))


class _Residual(nn.Module):
    """Two convolutions, between which the time comes in."""

    def __init__(self, taken: int, given: int, time: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, taken), nn.GroupNorm(8, given)
        self.conv1, self.conv2 = nn.Conv2d(taken, given, 3, 1, 1), nn.Conv2d(given, given, 3, 1, 1)
        self.time = nn.Linear(time, given)
        self.skip = nn.Conv2d(taken, given, 1) if taken != given else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        y = y + self.time(time)[:, :, None, None]
        return self.skip(x) + self.conv2(functional.silu(self.norm2(y)))


class _Attention(nn.Module):
    """Every place looks at every other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = x.shape
        flat = self.norm(x).reshape(n, channels, height * width).transpose(1, 2)
        q, k, v = self.qkv(flat).chunk(3, -1)
        attended = torch.softmax(q @ k.transpose(1, 2) * channels**-0.5, -1) @ v
        return x + self.out(attended).transpose(1, 2).reshape(n, channels, height, width)


class UNet(nn.Module):
    """A denoiser's shape: what each level made on the way down is used again on the way up."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256), time: int = 256) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, time), nn.SiLU(), nn.Linear(time, time))
        self.first = nn.Conv2d(4, widths[0], 3, 1, 1)
        pairs = list(zip((widths[0], *widths[:-1]), widths, strict=True))
        self.down = nn.ModuleList(_Residual(taken, given, time) for taken, given in pairs)
        self.shrink = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for width in widths)
        self.middle, self.attention = _Residual(widths[-1], widths[-1], time), _Attention(widths[-1])
        self.up = nn.ModuleList(_Residual(2 * given, taken, time) for taken, given in reversed(pairs))
        self.last = nn.Conv2d(widths[0], 4, 3, 1, 1)

    def forward(self, latents: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        time, x, kept = self.time(step), self.first(latents), list[torch.Tensor]()
        for block, shrink in zip(self.down, self.shrink, strict=True):
            x = block(x, time)
            kept.append(x)
            x = shrink(x)
        x = self.attention(self.middle(x, time))
        for block in self.up:
            skip = kept.pop()
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, skip], 1), time)
        return self.last(x)
