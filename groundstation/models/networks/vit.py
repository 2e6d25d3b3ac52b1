"""A small vision transformer (Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021) with the widths
of ViT-Tiny (Touvron et al., DeiT, ICML 2021: 192 and 3 heads) and half its
layers, for images of 64 pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

WIDTH, HEADS, LAYERS = 192, 3, 6


class VisionTransformer(nn.Module):  # type: ignore[misc]  # torch is not there for mypy
    """Images (N, 3, side, side) in patches of `patch` pixels -> logits (N, classes).

    Each token attends to all, of its own image. The answer is read from the mean of the tokens, which needs
    no token of its own (Beyer et al., "Better plain ViT baselines for ImageNet-1k", 2022)."""

    def __init__(self, side: int, patch: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, patch, patch)
        self.places = nn.Parameter(torch.randn(1, (side // patch) ** 2, WIDTH) * 0.02)
        self.blocks = nn.Sequential(*(EncoderBlock() for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes))

    def forward(self, x: Any) -> Any:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.blocks(tokens).mean(1))


class EncoderBlock(nn.Module):  # type: ignore[misc]
    """Attention and a perceptron, each behind a normalization and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.perceptron = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.perceptron(self.norm2(x))
