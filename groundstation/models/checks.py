"""Runs two graphs beside their torch network, and says where they differ.

A board cannot check a training graph: with a wrong gradient the loss still falls for a while, and nobody
sees which operator is wrong. (torch.onnx 2.13 silently mistranslates BatchNorm in training mode.) So loss,
answers, gradients and next statistics of random batches are compared with torch's in float64, and a network
with an error above `TOLERANCE` is refused.

Rounding alone may do more: it moves some unit of a deep network across the kink of a ReLU, and a
normalization over a few values that are nearly equal multiplies it. Torch's float32 is no better there. So a
tensor may also be `SLACK` times as far from float64 as torch's float32 usually is; and since rounding strikes
other units in each batch and a wrong gradient is wrong in all, one good batch of `DRAWS` is enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from groundstation.models.losses import CROSS_ENTROPY, Loss
from groundstation.models.lowering.draws import P, drawn, normals, threshold
from onboard.learn.graph import InferGraph, Parameters, TrainGraph

TOLERANCE = 1e-5  # of a tensor's norm; another order of float32 summation gives about 1e-6
SLACK = 4.0
DRAWS = 12
LEAST = 1e-3  # of the norm of all gradients: a smaller one, as of a bias before a normalization, is rounding
RATE = np.float32(0.01)
BATCH_SIZES = (1, 2, 7, 10, 33)  # one image, odd ones, the papers' batch, and one over 32
MOST_MACS = 1_000_000_000  # of a batch's forward pass; larger batches are left out, but not two images

Array = npt.NDArray[Any]
Reference = Callable[..., Any]
"""A network in torch: (tensors by name, images, training=) -> answers. Training moves statistics in place."""


class DisagreementError(ValueError):
    """Graphs that do not compute what their network does; one line says which tensor is how far off."""


@dataclass(frozen=True)
class Original:
    """What graphs are compared with. `start`: parameters and statistics about which they are."""

    reference: Reference
    start: Parameters
    loss: Loss = CROSS_ENTROPY


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a tensor is from float64's, of its norm: in a graph, and in torch's float32."""

    graph: float
    torch: float

    @property
    def is_rounding(self) -> bool:
        return self.graph <= max(TOLERANCE, SLACK * self.torch)


def check(
    train: TrainGraph, infer: InferGraph, original: Original, tell: Callable[[str], None] = lambda _: None
) -> Distance:
    """Compares batches of each size, and tells which is next. Returns the largest error of a tensor. Raises
    DisagreementError."""
    worst = Distance(0.0, 0.0)
    for name, value in original.start.items():
        if not np.isfinite(value).all():
            raise DisagreementError(f"{train.name}: {name} holds numbers that are not finite")
    if infer.shapes.keys() - train.shapes.keys():
        odd = min(infer.shapes.keys() - train.shapes.keys())
        raise DisagreementError(f"{train.name}: training does not take {odd}, which inference does")
    _check_alone(infer, original)
    for batch in BATCH_SIZES if _learns_alone(train, original) else BATCH_SIZES[1:]:
        if batch <= 2 or batch * train.forward_macs <= MOST_MACS:
            tell(f"comparing a batch of {batch} with torch")
            found = distances(train, infer, original, batch)
            worst = max(worst, *found.values(), key=lambda each: each.graph)
    return worst


def check_drawn(train: TrainGraph, original: Original) -> None:
    """Raises DisagreementError if a network cannot learn from weights that are drawn from a seed: these take
    a vector for a bias and begin it at 0, unless it is a `.weight`, and some networks divide by one, or
    multiply with two in a row."""
    rng = np.random.default_rng(0)
    x, y = _images(rng, (4, *train.input_shape)), np.empty(0)
    if original.loss.is_labelled:
        y = _labels(rng, original.loss, x.shape, train.classes)
    drawn, own = (_moving(train, start, x, y) for start in (train.initial(0), original.start))
    for name in train.shapes:
        if name in own - drawn:
            raise DisagreementError(
                f"{train.name}: {name} never learns from weights drawn from a seed: needs --weights module"
            )


def _moving(train: TrainGraph, start: Parameters, x: Array, y: Array) -> set[str]:
    """Returns the parameters that have a gradient in any of the first steps, as far as these are finite."""
    moving, parameters = set[str](), dict(start)
    for step in range(4):
        loss, gradients, following = train.step(parameters, x, y, step)
        if not np.isfinite(loss):
            break
        moving |= {name for name, slope in gradients.items() if slope.any()}
        parameters |= following
        parameters |= {name: parameters[name] - RATE * np.sign(each) for name, each in gradients.items()}
    return moving


def _learns_alone(train: TrainGraph, original: Original) -> bool:
    """Says whether torch trains on one image. It refuses to where a normalization sees one value a channel;
    the graph then leaves it as it is, without a spread."""
    import torch

    tensors = {name: torch.from_numpy(value.copy()) for name, value in original.start.items()}
    try:
        original.reference(tensors, torch.zeros(1, *train.input_shape), training=True)
    except ValueError:
        return False
    return True


def _check_alone(infer: InferGraph, original: Original) -> None:
    """Raises DisagreementError if an image's answer depends on the other images of its batch."""
    x = _images(np.random.default_rng(0), (3, *infer.input_shape))
    parameters = {name: original.start[name] for name in infer.shapes}
    together, alone = (infer.logits(parameters, x)[:1], infer.logits(parameters, x[:1]))
    error = _distance(together, alone.astype(np.float64), 0.0)
    if not error <= 100 * TOLERANCE:
        raise DisagreementError(
            f"{infer.name}: an image's answer depends on its batch: it is off by {error:.1e}"
        )


def distances(
    train: TrainGraph, infer: InferGraph, original: Original, batch: int, seed: int = 0
) -> Mapping[str, Distance]:
    """Returns the distance of "loss", "logits", each gradient and each next statistic (by its parameter's
    name), all within bounds. Raises DisagreementError, which names the worst."""
    drawn_ones = list[dict[str, Distance]]()
    for draw in range(DRAWS):
        drawn_ones.append(_distances(train, infer, original, batch, seed * DRAWS + draw))
        best = {what: _best([each[what] for each in drawn_ones]) for what in drawn_ones[0]}
        if all(each.is_rounding for each in best.values()):
            break
    else:
        what = max(best, key=lambda what: 0.0 if best[what].is_rounding else best[what].graph)
        raise DisagreementError(
            f"{train.name}: {what} is off by {best[what].graph:.1e} at batch {batch}, in torch's float32 by "
            f"{best[what].torch:.1e}; limit {TOLERANCE}"
        )
    return best


def _best(drawn_ones: Sequence[Distance]) -> Distance:
    """Returns the graph's least distance, and torch's usual one."""
    least = min(np.nan_to_num(each.graph, nan=np.inf) for each in drawn_ones)
    return Distance(float(least), float(np.median([each.torch for each in drawn_ones])))


def _distances(
    train: TrainGraph, infer: InferGraph, original: Original, batch: int, seed: int
) -> dict[str, Distance]:
    rng = np.random.default_rng((batch, seed))
    x, y = _images(rng, (batch, *train.input_shape)), None
    if original.loss.is_labelled:
        y = _labels(rng, original.loss, (batch, *train.input_shape), train.classes)
    parameters = {name: _moved(rng, value, name in train.buffers) for name, value in original.start.items()}
    given = {"x": x} if y is None else {"x": x, "y": y}
    drawn = {"seed": np.array(seed, np.int64)} if train.takes_seed else {}
    outputs = train.run(parameters, {**given, **drawn})
    names = [name.removeprefix("grad.").removeprefix("next.") for name in train.outputs]
    ours = dict(zip(names, outputs, strict=True))
    ours["logits"] = infer.run({name: parameters[name] for name in infer.shapes}, {"x": x})[0]
    exact, single = (
        _torchs(original, {**train.frozen, **parameters}, train, (x, y, seed), kind) for kind in ("64", "32")
    )
    gradients = [name for name in train.shapes if name not in train.buffers]
    least = LEAST * float(np.sqrt(sum(float((exact[name] ** 2).sum()) for name in gradients)))
    floors = dict.fromkeys(gradients, least)
    return {
        what: Distance(*(_distance(each[what], value, floors.get(what, 0.0)) for each in (ours, single)))
        for what, value in exact.items()
    }


def _images(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draws images half of which are blank, as around a drawn digit, so that places under a maximum tie."""
    x: Array = rng.random(shape, dtype=np.float32)
    x[..., shape[-1] // 2 :] = 0
    return x


def _labels(rng: np.random.Generator, loss: Loss, images: Sequence[int], outputs: int) -> Array:
    shape = (images[0], *loss.labels(images[1:], outputs))
    if not loss.has_classes:
        return rng.random(shape, dtype=np.float32)
    y = rng.integers(0, outputs, shape)
    if loss.ignore is not None:
        y[rng.random(shape) < 0.2] = loss.ignore
    return y


def _moved(rng: np.random.Generator, value: Array, is_statistic: bool) -> Array:
    """Moves a tensor away from where it starts: a bias of zero would hide an error in how it is used."""
    noise = rng.normal(0, 0.1, value.shape).astype(np.float32)
    if is_statistic:
        noise = np.abs(noise)  # a variance stays above 0
    elif value.ndim >= 2:
        noise *= max(float(value.std()), 0.01)
    moved: Array = value + noise
    return moved


def _torchs(
    original: Original,
    values: Parameters,
    train: TrainGraph,
    batch: tuple[Array, Array | None, int],
    kind: str,
) -> dict[str, Array]:
    """Returns what torch computes in floats of 32 or 64 bits, with the numbers that the graph draws."""
    import torch

    dtype = {"64": torch.float64, "32": torch.float32}[kind]
    x, y, seed = batch
    tensors = {name: torch.from_numpy(value).to(dtype) for name, value in values.items()}
    images = torch.from_numpy(x).to(dtype)
    labels = None if y is None else torch.from_numpy(y)
    if labels is not None and labels.is_floating_point():
        labels = labels.to(dtype)
    with torch.no_grad(), _computing(seed, dtype):
        logits = original.reference(tensors, images, training=False)
    leaves = {name: tensors[name].requires_grad_() for name in train.shapes if name not in train.buffers}
    with _computing(seed, dtype):
        answers = original.reference(tensors, images, training=True)
        loss = original.loss.of(answers, images, labels)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
    found = {"loss": loss, "logits": logits, **dict(zip(leaves, slopes, strict=True))}
    found |= {name: tensors[name] for name in train.buffers}
    return {what: value.detach().numpy() for what, value in found.items()}


def _computing(seed: int, dtype: Any) -> Any:
    """Returns a context in which torch draws the numbers that a graph draws from this seed, and computes in
    floats of `dtype` also where a network says float32, or holds tensors that are none of its state; and
    without torch's own error in normalization."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map

    aten, plain = torch.ops.aten, torch.contiguous_format

    def widened(x: Any) -> Any:
        if isinstance(x, torch.dtype):
            return dtype if x == torch.float32 else x
        is_narrow = isinstance(x, torch.Tensor) and x.dtype == torch.float32
        return x.to(dtype) if is_narrow else x

    class Computing(TorchDispatchMode):  # type: ignore[misc]  # torch is not there for mypy
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def __torch_dispatch__(self, call: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            args, kwargs = tree_map(widened, (args, kwargs or {}))
            if call is aten.bernoulli_.float:
                x, chance = args[0], args[1] if len(args) > 1 else kwargs.get("p", 0.5)
                return x.copy_(self.numbers(x.shape) < threshold(chance))
            if call is aten.bernoulli.default:
                return (self.numbers(args[0].shape) < args[0] * P).to(args[0].dtype)
            if call is aten.rand.default or call is aten.rand_like.default:
                like = call(*args, **kwargs)
                return self.numbers(like.shape).to(like.dtype) / P
            if call in (aten.randn.default, aten.randn_like.default):
                like = call(*args, **kwargs)
                pair = (self.numbers(like.shape).numpy() for _ in range(2))
                return torch.from_numpy(normals(*pair)).to(like.dtype)
            if call is aten.native_batch_norm_backward.default:
                # torch 2.13 on a processor mixes one image's channels up where the slopes, as behind a
                # transpose to tokens, lie channels last, and the image does not.
                args = tuple(x.clone(memory_format=plain) for x in args[:2]) + args[2:]
            return call(*args, **kwargs)

        def numbers(self, shape: Sequence[int]) -> Any:
            self.count += 1
            return torch.from_numpy(drawn(seed, self.count - 1, tuple(shape)))

    return Computing()


def _distance(ours: Array, exact: Array, floor: float) -> float:
    if ours.shape != exact.shape:
        return float("inf")
    norm = max(float(np.linalg.norm(exact)), floor, float(np.finfo(np.float32).tiny))
    return float(np.linalg.norm(ours.astype(np.float64) - exact)) / norm
