"""The table of ONNX operators that are read, each turned into one module for each output.

A converter gets a `NodeView` and returns the module, which takes the node's inputs that are not
constants, in their order. What is constant the converter reads: one that it leaves unread is
refused by the importer, so that none is ever dropped. Semantics follow the ONNX operator schemas,
opset 9 to the newest that the ``onnx`` package knows; the simplifier has folded constants before.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from edgeclean.load.onnx.elementwise import ELEMENTWISE
from edgeclean.load.onnx.layers import LAYERS
from edgeclean.load.onnx.node import NodeView
from edgeclean.load.onnx.norms import NORMS
from edgeclean.load.onnx.places import PLACES
from edgeclean.load.onnx.reductions import REDUCTIONS
from edgeclean.load.onnx.resize import RESIZES
from edgeclean.load.onnx.windows import WINDOWS

OPERATORS: dict[str, Callable[[NodeView], nn.Module | list[nn.Module]]] = {
    **ELEMENTWISE,
    **LAYERS,
    **NORMS,
    **PLACES,
    **REDUCTIONS,
    **RESIZES,
    **WINDOWS,
}
