"""Normalizations as operators of their own, which a trace shows whole and not as many passes over a map.

In place of torch's: torch.onnx mistranslates the training of BatchNorm, and a decomposed one reads and writes
each map twice as often."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any


def batch_norm(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Normalizes each channel by the batch, and moves the running statistics by `momentum`; or by these."""
    given = _given(call, args, kwargs)
    x, mean, variance = given["input"], given["running_mean"], given["running_var"]
    weight, bias, eps = given["weight"], given["bias"], given["eps"]
    if not given["training"]:
        return _by_statistics(given)
    weight = x.new_ones(x.shape[1]) if weight is None else weight
    bias = x.new_zeros(x.shape[1]) if bias is None else bias
    y, _, batch_mean, _, unbiased = _operators()["batch_norm"](x, weight, bias, eps)
    if mean is not None:
        momentum = given["momentum"]
        mean.mul_(1 - momentum).add_(batch_mean.detach(), alpha=momentum)
        variance.mul_(1 - momentum).add_(unbiased.detach(), alpha=momentum)
    return y


def layer_norm(
    _: Any, x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """Normalizes over the last axes, those of `shape`."""
    axes = list(range(x.dim() - len(shape), x.dim()))
    return _affine(_normalized(x, axes, eps), weight, bias, [1] * (x.dim() - len(shape)) + list(shape))


def instance_norm(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Normalizes each channel of each image, or by running statistics, which are the images' mean ones."""
    given = _given(call, args, kwargs)
    x, mean, variance = given["input"], given["running_mean"], given["running_var"]
    form, places = [1, -1] + [1] * (x.dim() - 2), list(range(2, x.dim()))
    if not given["use_input_stats"]:
        return _by_statistics(given)
    parts = _normalized(x, places, given["eps"])
    if mean is not None:
        momentum = given["momentum"]
        mean.mul_(1 - momentum).add_(x.detach().mean([0, *places]), alpha=momentum)
        variance.mul_(1 - momentum).add_(x.detach().var(places).mean(0), alpha=momentum)
    return _affine(parts, given["weight"], given["bias"], form)


def group_norm(_: Any, x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """Normalizes each group of channels of each image."""
    form = [1, -1] + [1] * (x.dim() - 2)
    parts = _normalized(x.reshape(x.shape[0], groups, -1), [2], eps)
    return _affine(parts.reshape(x.shape), weight, bias, form)


def weight_norm(_: Any, v: Any, g: Any, dim: int = 0) -> Any:
    """Makes a weight of a direction and lengths, one for each place of an axis, or one for all where -1."""
    axes = [axis for axis in range(v.dim()) if axis != dim]
    return v * (g / (v * v).sum(axes, keepdim=True).sqrt()) if axes else NotImplemented


def _by_statistics(given: dict[str, Any]) -> Any:
    """Normalizes by running statistics. A variance that was averaged from quantized or late values can be
    below 0."""
    import torch

    x, variance = given["input"], given["running_var"].clamp_min(0)
    return torch.nn.functional.batch_norm(
        x, given["running_mean"], variance, given["weight"], given["bias"], False, 0.0, given["eps"]
    )


def _given(call: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Returns the arguments of a call by their names, with its defaults."""
    bound = inspect.signature(call).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _affine(x: Any, weight: Any, bias: Any, form: Sequence[int]) -> Any:
    x = x if weight is None else x * weight.reshape(form)
    return x if bias is None else x + bias.reshape(form)


def _normalized(x: Any, axes: Sequence[int], eps: float) -> Any:
    return _operators()["normalize"](x, list(axes), eps)[0]


@cache
def _operators() -> dict[str, Any]:
    """Returns the operators. Each gives beside its result what its gradient needs."""
    import torch

    library = torch.library.Library("spacedml", "FRAGMENT")
    library.define("normalize(Tensor x, int[] axes, float eps) -> (Tensor, Tensor)")
    library.define("normalize_backward(Tensor g, Tensor y, Tensor scale, int[] axes) -> Tensor")
    library.define(
        "batch_norm(Tensor x, Tensor weight, Tensor bias, float eps)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    )
    library.define(
        "batch_norm_backward(Tensor g, Tensor away, Tensor variance, Tensor weight, float eps)"
        " -> (Tensor, Tensor, Tensor)"
    )
    for name, how in (
        ("normalize", _normalize), ("normalize_backward", _normalize_backward),
        ("batch_norm", _batch_norm), ("batch_norm_backward", _batch_norm_backward),
    ):  # fmt: skip
        library.impl(name, how, "CompositeExplicitAutograd")
    backward = torch.ops.spacedml

    def keep_normal(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.axes = inputs[1]
        ctx.save_for_backward(*output)

    def differentiate_normal(ctx: Any, g: Any, _: Any) -> tuple[Any, None, None]:
        return backward.normalize_backward(g, *ctx.saved_tensors, ctx.axes), None, None

    def keep_batch(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.eps = inputs[3]
        ctx.save_for_backward(output[1], output[3], inputs[1])

    def differentiate_batch(ctx: Any, g: Any, *_: Any) -> tuple[Any, Any, Any, None]:
        return *backward.batch_norm_backward(g, *ctx.saved_tensors, ctx.eps), None

    for name, differentiate, keep in (
        ("normalize", differentiate_normal, keep_normal), ("batch_norm", differentiate_batch, keep_batch)
    ):  # fmt: skip
        torch.library.register_autograd(f"spacedml::{name}", differentiate, setup_context=keep, lib=library)
    return {
        "normalize": torch.ops.spacedml.normalize.default,
        "batch_norm": torch.ops.spacedml.batch_norm.default,
        "library": library,  # the operators live as long as it does
    }


def _normalize(x: Any, axes: Sequence[int], eps: float) -> tuple[Any, Any]:
    """Returns (x - mean) / deviation and 1 / deviation."""
    away = x - x.mean(axes, keepdim=True)
    scale = ((away * away).mean(axes, keepdim=True) + eps).rsqrt()
    return away * scale, scale


def _normalize_backward(g: Any, y: Any, scale: Any, axes: Sequence[int]) -> Any:
    mean, slope = (part.mean(axes, keepdim=True) for part in (g, g * y))
    return (g - mean - y * slope) * scale


def _batch_norm(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, ...]:
    """Returns the result, x - mean, and by channel the mean, the variance and the unbiased one."""
    axes, form = _of_channels(x)
    mean = x.mean(axes)
    away = x - mean.reshape(form)
    variance = (away * away).mean(axes)
    y = away * (weight * (variance + eps).rsqrt()).reshape(form) + bias.reshape(form)
    count = x.numel() // x.shape[1]
    return y, away, mean, variance, variance * (count / (count - 1) if count > 1 else float("nan"))


def _batch_norm_backward(g: Any, away: Any, variance: Any, weight: Any, eps: float) -> tuple[Any, ...]:
    """Returns the gradients by x, weight and bias (Ioffe and Szegedy, ICML 2015, section 3)."""
    axes, form = _of_channels(g)
    scale = (variance + eps).rsqrt()
    by_bias, by_weight = g.sum(axes), (g * away).sum(axes) * scale
    count = g.numel() // g.shape[1]
    mean, slope = (part.reshape(form) for part in (by_bias / count, by_weight * scale / count))
    return (g - mean - away * slope) * (weight * scale).reshape(form), by_weight, by_bias


def _of_channels(x: Any) -> tuple[list[int], list[int]]:
    """Returns all axes but the channels', and the form of a channel's number beside a map."""
    return [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
