"""Random numbers, as dropout takes them, from a seed that is an input of the graph.

ONNX's own random operators draw otherwise on each machine and in each version. So these are computed, in
whole numbers whose order of evaluation cannot matter: entry i of row r of a tensor is

    cube(cube(a + i) + k(r)),  cube(x) = x^3 mod P,

with a and k(r) hashed from the seed and from how many tensors were drawn before (`Keys`). P = 2^20 - 5 is a
prime and 2 modulo 3, so that a cube is a permutation (as the rounds of MiMC are: Albrecht et al., ASIACRYPT
2016), and (2 P)^3 fits into 63 bits. A row is one place of a tensor's first axis, most often an image.

`drawn` is the same in numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from groundstation.models.lowering.writer import Call, Writer, is_known, product

P = 2**20 - 5
MODULI = (2**20 - 5, 2**20 - 3, 2**20 - 17)  # primes: what is left of a seed by each tells 2^60 seeds apart
STEP = 648_053  # the golden section of P, so that the words of tensors are far apart

Integers = npt.NDArray[np.int64]


def words(layer: int) -> tuple[int, int]:
    """Returns what the two keys of the tensor of this number, from 0, begin with."""
    return (2 * layer + 1) * STEP % P, (2 * layer + 2) * STEP % P


def drawn(seed: int, layer: int, shape: Sequence[int]) -> Integers:
    """Returns the numbers 0..P-1 of the tensor that is drawn as number `layer` of a step."""

    def hashed(word: int) -> int:
        for modulus in MODULI:
            word = (word + seed % modulus) ** 3 % P
        return word

    a, b = map(hashed, words(layer))
    rows = np.arange(shape[0] if shape else 1)
    keys = (((b + rows) % P) ** 3 % P + a) ** 3 % P
    i = np.arange(math.prod(shape[1:]))
    own = ((a + i % P) ** 3 + i // P) % P
    return ((own + keys[:, None]) ** 3 % P).reshape(shape)


def threshold(chance: float) -> int:
    """Returns below which of the P numbers an event of this chance happens."""
    return round(chance * P)


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of a tensor's keys in a graph, int64 scalars: `a` for entries, `b` for rows."""

    a: str
    b: str


def bernoulli(call: Call, x: Any, chance: Any = None, **_: Any) -> str:
    """Writes 1 with the chance p, or with the one that each entry of x says, else 0."""
    w, numbers = call.writer, _numbers(call)
    if chance is None:
        limit = w.node("Mul", call.operand(x, "float32"), w.constant(float(P)))
        numbers = w.cast(numbers, "float32")
    else:
        limit = w.constant(threshold(chance), "int64")
    return w.cast(w.node("Less", numbers, limit), call.gives.dtype)


def native_dropout(call: Call, x: Any, chance: float, is_training: bool | None) -> tuple[str, str]:
    """Writes a tensor of which each entry is dropped with a chance, the rest scaled, and which are left."""
    w = call.writer
    if is_training is False or chance == 0:
        left = w.node("Expand", w.constant(True, "bool"), w.sizes(call.shape(x)))
        return call.name(x), left
    left = w.node("Less", _numbers(call), w.constant(threshold(1 - chance), "int64"))
    scale = 1 / (1 - chance) if chance < 1 else 0.0
    kept = w.node("Mul", w.cast(left, "float32"), w.constant(scale))
    return w.node("Mul", call.name(x), kept), left


def uniform(call: Call, *_: Any, **__: Any) -> str:
    """Writes numbers of [0, 1)."""
    w = call.writer
    return w.node("Mul", w.cast(_numbers(call), "float32"), w.constant(1 / P))


def normal(call: Call, *_: Any, **__: Any) -> str:
    """Writes numbers of a normal distribution (Box and Muller 1958), up to 5.3 deviations."""
    w = call.writer
    far, around = (w.cast(_numbers(call), "float32") for _ in range(2))
    ours = w.node("Mul", w.node("Add", far, w.constant(1.0)), w.constant(1 / P))  # (0, 1]
    radius = w.node("Sqrt", w.node("Mul", w.node("Log", ours), w.constant(-2.0)))
    return w.node("Mul", radius, w.node("Cos", w.node("Mul", around, w.constant(2 * math.pi / P))))


def normals(far: Integers, around: Integers) -> npt.NDArray[np.float64]:
    """The same in numpy, of the numbers of two tensors that are drawn one after the other."""
    found: npt.NDArray[np.float64] = np.sqrt(-2 * np.log((far + 1) / P)) * np.cos(2 * np.pi / P * around)
    return found


def _numbers(call: Call) -> str:
    w, shape = call.writer, call.gives.shape
    keys = _keys(w, w.count_drawn())
    rows = _modulo(w, w.node("Add", _range(w, shape[0] if shape else 1), keys.b))
    per_row = _cube(w, w.node("Add", _cube(w, rows), keys.a))
    inner = product(shape[1:])
    i = _range(w, inner)
    if is_known(inner) and inner <= P:
        own = _cube(w, w.node("Add", i, keys.a))
    else:
        over = w.node("Div", i, w.constant(P, "int64"))
        cubed = _power(w, w.node("Add", _modulo(w, i), keys.a))
        own = _modulo(w, w.node("Add", cubed, over))
    both = w.node("Add", own, w.node("Unsqueeze", per_row, w.integers(1)))
    return w.reshape(_cube(w, both), shape)


def _keys(w: Writer, layer: int) -> Keys:
    rests = [w.node("Mod", w.seed(), w.constant(modulus, "int64")) for modulus in MODULI]
    hashed = []
    for word in words(layer):
        name = w.constant(word, "int64")
        for rest in rests:
            name = _cube(w, w.node("Add", name, rest))
        hashed.append(name)
    return Keys(*hashed)


def _range(w: Writer, size: Any) -> str:
    if is_known(size):
        bounds = [w.constant(each, "int64") for each in (0, size, 1)]
    else:
        count = w.node("Squeeze", w.sizes([size]), w.integers(0))
        bounds = [w.constant(0, "int64"), count, w.constant(1, "int64")]
    return w.node("Range", *bounds)


def _cube(w: Writer, x: str) -> str:
    return _modulo(w, _power(w, x))


def _power(w: Writer, x: str) -> str:
    return w.node("Mul", w.node("Mul", x, x), x)


def _modulo(w: Writer, x: str) -> str:
    return w.node("Mod", x, w.constant(P, "int64"))
