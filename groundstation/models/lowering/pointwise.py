"""Operators that treat each entry of a tensor for itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from groundstation.models.lowering.writer import Call, Lowering, Writer
from groundstation.models.tracing import Result

UNARY = {
    "relu": "Relu", "exp": "Exp", "log": "Log", "neg": "Neg", "sqrt": "Sqrt", "sigmoid": "Sigmoid", "tanh":
    "Tanh", "erf": "Erf", "abs": "Abs", "sign": "Sign", "reciprocal": "Reciprocal", "floor": "Floor", "ceil":
    "Ceil", "round": "Round", "isnan": "IsNaN", "isinf": "IsInf", "sin": "Sin", "cos": "Cos", "tan": "Tan",
    "asin": "Asin", "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh":
    "Acosh", "atanh": "Atanh",
}  # fmt: skip
ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "maximum": "Max", "minimum": "Min"}
COMPARISONS = {"eq": "Equal", "gt": "Greater", "lt": "Less", "ge": "GreaterOrEqual", "le": "LessOrEqual"}
LOGIC = {
    "logical_and": "And", "logical_or": "Or", "logical_xor": "Xor",
    "bitwise_and": "And", "bitwise_or": "Or", "bitwise_xor": "Xor",
}  # fmt: skip
TANH_SCALE, TANH_CUBE = math.sqrt(2 / math.pi), 0.044715  # of the GELU by tanh
OF_BOOLS = {"Add": "Or", "Max": "Or", "Mul": "And", "Min": "And"}


def unary(operation: str) -> Lowering:
    return lambda call, x: call.writer.node(operation, call.operand(x, call.tensor(x).dtype))


def arithmetic(operation: str) -> Lowering:
    def lowered(call: Call, a: Any, b: Any, *, alpha: Any = 1, rounding_mode: str | None = None) -> str:
        dtype, w = call.gives.dtype, call.writer
        first, second = call.operand(a, dtype), call.operand(b, dtype)
        if dtype == "bool":
            return w.node(OF_BOOLS[operation], first, second)
        if alpha != 1:
            second = w.node("Mul", second, w.constant(alpha, dtype))
        found = w.added(first, second) if operation == "Add" else w.node(operation, first, second)
        if rounding_mode is None:
            return found
        if rounding_mode != "floor" or dtype != "float32":
            raise call.refuse(f"rounds as {rounding_mode!r} in {dtype}, which has no ONNX form here")
        return w.node("Floor", found)

    return lowered


def comparison(operation: str) -> Lowering:
    def lowered(call: Call, a: Any, b: Any) -> str:
        dtype = _compared_as(call, a, b)
        return call.writer.node(operation, call.operand(a, dtype), call.operand(b, dtype))

    return lowered


def _compared_as(call: Call, a: Any, b: Any) -> str:
    """Returns the dtype that torch compares two operands in."""
    dtypes = [call.tensor(x).dtype for x in (a, b) if isinstance(x, Result)]
    if len(dtypes) == 2:
        return dtypes[0] if dtypes[0] == dtypes[1] else str(np.result_type(*dtypes))
    number = b if isinstance(a, Result) else a
    return "float32" if isinstance(number, float) and "float" not in dtypes[0] else dtypes[0]


def logic(operation: str) -> Lowering:
    return lambda call, a, b: call.writer.node(operation, call.operand(a, "bool"), call.operand(b, "bool"))


def inverted(call: Call, x: Any) -> str:
    return call.writer.node("Not", call.operand(x, "bool"))


def not_equal(call: Call, a: Any, b: Any) -> str:
    return call.writer.node("Not", comparison("Equal")(call, a, b))


def reciprocal_root(call: Call, x: Any) -> str:
    return call.writer.node("Reciprocal", call.writer.node("Sqrt", call.name(x)))


def log1p(call: Call, x: Any) -> str:
    return call.writer.node("Log", call.writer.node("Add", call.name(x), call.writer.constant(1.0)))


def expm1(call: Call, x: Any) -> str:
    return call.writer.node("Sub", call.writer.node("Exp", call.name(x)), call.writer.constant(1.0))


def power(call: Call, x: Any, exponent: Any) -> str:
    w, base = call.writer, call.operand(x, call.gives.dtype)
    return (
        w.node("Mul", base, base) if exponent == 2 else w.node("Pow", base, call.operand(exponent, "float32"))
    )


def remainder(call: Call, a: Any, b: Any) -> str:
    """Takes the divisor's sign, as Python's % does."""
    w, dtype = call.writer, call.gives.dtype
    x, y = call.operand(a, dtype), call.operand(b, dtype)
    if dtype == "int64":
        return w.node("Mod", x, y)
    return w.node("Sub", x, w.node("Mul", w.node("Floor", w.node("Div", x, y)), y))


def where(call: Call, condition: Any, a: Any, b: Any) -> str:
    dtype = call.gives.dtype
    return call.writer.node("Where", call.name(condition), call.operand(a, dtype), call.operand(b, dtype))


def clamp(call: Call, x: Any, low: Any = None, high: Any = None) -> str:
    dtype = call.gives.dtype
    found = call.operand(x, dtype)
    for bound, operation in ((low, "Max"), (high, "Min")):
        if bound is not None:
            found = call.writer.node(operation, found, call.operand(bound, dtype))
    return found


def clamp_above(call: Call, x: Any, high: Any) -> str:
    return clamp(call, x, None, high)


def leaky_relu(call: Call, x: Any, slope: float = 0.01) -> str:
    return call.writer.node("LeakyRelu", call.name(x), alpha=float(slope))


def threshold_backward(call: Call, g: Any, x: Any, threshold: Any) -> str:
    """Passes the gradient where x > threshold, by a product: ONNX's Where takes ten times as long.

    A ReLU's result is never negative, and so is 0 or, times 1e38, at least 1 (but for subnormal numbers)."""
    w, name = call.writer, call.name(x)
    if threshold == 0 and w.made_by(name) == "Relu":
        passes = w.node("HardSigmoid", name, alpha=1e38, beta=0.0)
    else:
        passes = w.cast(w.node("Greater", name, w.constant(threshold)), "float32")
    return w.node("Mul", call.name(g), passes)


def gelu(call: Call, x: Any, *, approximate: str = "none") -> str:
    """Hendrycks and Gimpel, "Gaussian error linear units" (2016), exact or by tanh."""
    return call.writer.node("Mul", call.name(x), _gelu_share(call.writer, call.name(x), approximate)[0])


def gelu_backward(call: Call, g: Any, x: Any, *, approximate: str = "none") -> str:
    """Writes the product rule: g (share + x share')."""
    w, name = call.writer, call.name(x)
    share, inner = _gelu_share(w, name, approximate)
    if approximate == "tanh":  # share' = 2 share (1 - share) inner'
        bend = w.node("Mul", w.node("Sub", share, w.node("Mul", share, share)), w.constant(2.0))
        cubic = w.node("Mul", w.node("Mul", name, name), w.constant(3 * TANH_CUBE * TANH_SCALE))
        slope = w.node("Mul", bend, w.node("Mul", name, w.node("Add", cubic, w.constant(TANH_SCALE))))
    else:  # share' = exp(-inner^2) / sqrt(2 pi)
        bell = w.node("Exp", w.node("Neg", w.node("Mul", inner, inner)))
        slope = w.node("Mul", w.node("Mul", name, bell), w.constant(1 / math.sqrt(2 * math.pi)))
    return w.node("Mul", call.name(g), w.node("Add", share, slope))


def _gelu_share(w: Writer, x: str, approximate: str) -> tuple[str, str]:
    """Returns (1 + bent(inner)) / 2, the share of x that passes, in one pass for both, and `inner`."""
    if approximate == "tanh":
        cube = w.node("Mul", w.node("Mul", x, x), x)
        inner = w.node("Add", x, w.node("Mul", cube, w.constant(TANH_CUBE)))
        inner = w.node("Mul", inner, w.constant(TANH_SCALE))
    else:
        inner = w.node("Mul", x, w.constant(math.sqrt(0.5)))
    bent = w.node("Tanh" if approximate == "tanh" else "Erf", inner)
    return w.node("HardSigmoid", bent, alpha=0.5, beta=0.5), inner


def same(call: Call, x: Any, *_: Any, **__: Any) -> str:
    return call.name(x)


def converted(call: Call, x: Any, **_: Any) -> str:
    return call.operand(x, call.gives.dtype)
