"""What a network learns: its task, and the loss that stands in the training graph.

| task | labels | answers | loss |
| --- | --- | --- | --- |
| classify | int64 (N) | (N, classes) | cross-entropy |
| segment | int64 (N, H, W) | (N, classes, H, W) | cross-entropy of each pixel |
| regress | float32 (N, outputs) | (N, outputs) | squared error |
| reconstruct | none | (N, C, H, W) | squared error against the image |

Each is a mean: over images, over the pixels that count, or over numbers. A batch of which no pixel counts has
the loss 0 and gradients of 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onboard.learn.objectives import Kind


@dataclass(frozen=True, kw_only=True)
class Loss:
    """`label_smoothing`: the share of a label that is spread over all classes (Szegedy et al., CVPR 2016);
    `class_weights`: how much an image or pixel of each class counts, by default 1; `ignore`: a label that
    does not count."""

    kind: Kind = "classify"
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    ignore: int | None = None

    @property
    def has_classes(self) -> bool:
        return self.kind in ("classify", "segment")

    @property
    def is_labelled(self) -> bool:
        return self.kind != "reconstruct"

    def answers(self, image: Sequence[int], outputs: int) -> tuple[int, ...]:
        """Returns the shape of one image's answer."""
        return {
            "classify": (outputs,), "segment": (outputs, *image[1:]), "regress": (outputs,),
            "reconstruct": tuple(image),
        }[self.kind]  # fmt: skip

    def labels(self, image: Sequence[int], outputs: int) -> tuple[int, ...]:
        """Returns the shape of one image's label."""
        return self.answers(image, outputs)[1:] if self.has_classes else (outputs,)

    def of(self, answers: Any, x: Any, y: Any = None) -> Any:
        """Returns the loss of a batch as torch has it, from answers, images, and labels if there are any."""
        from torch.nn import functional

        if self.kind == "reconstruct":
            return functional.mse_loss(answers, x)
        if self.kind == "regress":
            return functional.mse_loss(answers, y)
        if not self.class_weights and self.ignore is None:
            return functional.cross_entropy(answers, y, label_smoothing=self.label_smoothing)
        return self._weighted(answers, y)

    def _weighted(self, answers: Any, y: Any) -> Any:
        """Returns what torch's cross_entropy does, but 0 and not NaN where nothing counts."""
        import torch

        classes, form = answers.shape[1], [1, -1] + [1] * (answers.dim() - 2)
        weights = torch.tensor(self.class_weights or [1.0] * classes, dtype=answers.dtype).reshape(form)
        counts = torch.ones_like(y, dtype=torch.bool) if self.ignore is None else y != self.ignore
        truth = (y.unsqueeze(1) == torch.arange(classes).reshape(form)) & counts.unsqueeze(1)
        told = truth.to(answers.dtype) * weights
        spread = counts.unsqueeze(1).to(answers.dtype) * weights * (self.label_smoothing / classes)
        wanted = told * (1 - self.label_smoothing) + spread if self.label_smoothing else told
        least = torch.finfo(torch.float32).tiny
        return -(wanted * torch.log_softmax(answers, 1)).sum() / told.sum().clamp_min(least)


CROSS_ENTROPY = Loss()
