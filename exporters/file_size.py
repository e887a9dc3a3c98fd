"""What an ONNX file will take, foretold from a network's parameters."""

from __future__ import annotations

from edgeclean.compression.goals import FileSize
from edgeclean.networks.cost import count_params
from edgeclean.networks.layers import conv_shapes, trace_layers
from edgeclean.networks.state import Network
from exporters.precision.lower import Precision

BYTES_PER_PARAM: dict[Precision, float] = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0}
NODE_BYTES = 1000  # of two further convolutions in an ONNX graph, names included, at the most


def foretell_size(network: Network, model: bytes, precision: Precision) -> FileSize:
    """How the file's bytes follow from the parameters, in a precision of `BYTES_PER_PARAM`.

    Args:
        network: in its original shape.
        model: its ONNX file in float32, which shows what its graph takes.
        precision: that the file is written in.
    """
    layers = len(conv_shapes(trace_layers(network.module, network.spec.input_shape)))
    graph_bytes = max(0, len(model) - 4 * count_params(network.module))
    return FileSize(
        bytes_per_param=BYTES_PER_PARAM[precision],
        overhead_bytes=graph_bytes + NODE_BYTES * layers,
    )
