"""ONNX operators that compute each number by itself, or from those at its own place."""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx import TensorProto
from torch import nn

from edgeclean.load.onnx.modules import (
    Arithmetic,
    Clamp,
    Function,
    LinearClamp,
    ScaledElu,
    Swish,
    Variadic,
    Where,
)
from edgeclean.load.onnx.node import NodeView

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017


def arithmetic(view: NodeView) -> nn.Module:
    """Convert an operator of two values, or of a value and a constant."""
    constants = view.constants_of()
    if not constants:
        return Arithmetic(view.node.op_type)
    ((place, number),) = constants.items()
    return Arithmetic(view.node.op_type, number, constant_first=place == 0)


def modulo(view: NodeView) -> nn.Module:
    """Convert Mod with the sign of what is divided, which alone ONNX has of numbers with parts."""
    if not view.attribute("fmod", 0):
        raise view.refusal("without fmod it is of whole numbers, and no image has those")
    constants = view.constants_of()
    return Arithmetic("Mod", *constants.values(), constant_first=0 in constants)


def variadic(view: NodeView) -> nn.Module:
    """Convert Sum, Mean, Max and Min, of any number of values and constants."""
    return Variadic(view.node.op_type, len(view.node.input), view.constants_of())


def where(view: NodeView) -> nn.Module:
    """Convert Where, each operand of which may be a constant."""
    constants = view.constants_of()
    if 0 in constants:
        constants[0] = constants[0].bool()
    return Where(constants)


def function(view: NodeView) -> nn.Module:
    """Convert a function of one value that torch has, and has no module for."""
    return Function(view.node.op_type)


def infinite(view: NodeView) -> nn.Module:
    """Convert IsInf of both signs."""
    if not (view.attribute("detect_negative", 1) and view.attribute("detect_positive", 1)):
        raise view.refusal("it looks for one sign alone; both are read")
    return Function("IsInf")


def cast(view: NodeView) -> nn.Module:
    """Convert Cast between numbers of floating point, which are float32 here, and from truth.

    Raises:
        InputRejectedError: it makes whole numbers or truth values of an image's values.
    """
    if int(view.attribute("to", 0)) != TensorProto.FLOAT:
        raise view.refusal(
            "it rounds what is computed from the image; only casts to float are read"
        )
    is_float = view.types.get(view.node.input[0]) == TensorProto.FLOAT
    return nn.Identity() if is_float else Function("Cast")


def clip(view: NodeView) -> nn.Module:
    """Convert Clip; 0 to 6 is ReLU6, and 0 without an upper bound is ReLU."""
    low, high = -math.inf, math.inf
    if view.opset < 11:
        low, high = view.attribute("min", low), view.attribute("max", high)
    else:
        low = float(view.constant(1)) if view.given(1) else low
        high = float(view.constant(2)) if view.given(2) else high
    if math.isnan(low) or math.isnan(high):
        raise view.refusal("a bound is NaN")
    known = {(0.0, 6.0): nn.ReLU6, (0.0, math.inf): nn.ReLU, (-math.inf, math.inf): nn.Identity}
    return known[low, high]() if (low, high) in known else Clamp(low, high)


def hard_sigmoid(view: NodeView) -> nn.Module:
    """Convert HardSigmoid; with slope 1/6 it is torch's own."""
    slope, offset = view.attribute("alpha", 0.2), view.attribute("beta", 0.5)
    same = math.isclose(slope, 1 / 6, rel_tol=1e-6) and offset == 0.5
    return nn.Hardsigmoid() if same else LinearClamp(slope, offset)


def selu(view: NodeView) -> nn.Module:
    """Convert Selu; with its published numbers it is torch's own."""
    alpha, scale = view.attribute("alpha", SELU_ALPHA), view.attribute("gamma", SELU_SCALE)
    same = math.isclose(alpha, SELU_ALPHA, rel_tol=1e-6) and math.isclose(
        scale, SELU_SCALE, rel_tol=1e-6
    )
    return nn.SELU() if same else ScaledElu(alpha, scale)


def gelu(view: NodeView) -> nn.Module:
    """Convert Gelu, exact or by tanh."""
    kind = view.attribute("approximate", b"none")
    if kind not in (b"none", b"tanh"):
        raise view.refusal(f"approximate is {kind[:20]!r}; none and tanh are supported")
    return nn.GELU(kind.decode("ascii"))


def swish(view: NodeView) -> nn.Module:
    """Convert Swish; with slope 1 it is torch's SiLU."""
    alpha = view.attribute("alpha", 1.0)
    return nn.SiLU() if alpha == 1 else Swish(alpha)


ELEMENTWISE: dict[str, Callable[[NodeView], nn.Module]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow"), arithmetic),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), arithmetic),
    **dict.fromkeys(("And", "Or", "Xor"), arithmetic),
    **dict.fromkeys(("Sum", "Mean", "Max", "Min"), variadic),
    **dict.fromkeys(("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Log", "Neg", "Not"), function),
    **dict.fromkeys(("Reciprocal", "Round", "Sign", "Sin", "Sqrt"), function),
    **dict.fromkeys(("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "Sinh"), function),
    **dict.fromkeys(("IsNaN", "Tan"), function),
    "Cast": cast,
    "Celu": lambda view: nn.CELU(view.attribute("alpha", 1.0)),
    "Clip": clip,
    "Elu": lambda view: nn.ELU(view.attribute("alpha", 1.0)),
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": lambda view: nn.Hardswish(),
    "IsInf": infinite,
    "LeakyRelu": lambda view: nn.LeakyReLU(view.attribute("alpha", 0.01)),
    "Mish": lambda view: nn.Mish(),
    "Mod": modulo,
    "Relu": lambda view: nn.ReLU(),
    "Selu": selu,
    "Sigmoid": lambda view: nn.Sigmoid(),
    "Softplus": lambda view: nn.Softplus(),
    "Softsign": lambda view: nn.Softsign(),
    "Swish": swish,
    "Tanh": lambda view: nn.Tanh(),
    "ThresholdedRelu": lambda view: nn.Threshold(view.attribute("alpha", 1.0), 0.0),
    "Where": where,
}
