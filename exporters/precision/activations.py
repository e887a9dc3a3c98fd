"""What flows between the layers of an ONNX file, for choosing ranges."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray

from exporters.onnx_check import open_onnx
from exporters.session import open_bytes


def all_activations(
    model: bytes, images: NDArray[np.float32]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every float tensor that a node of a float32 file writes, by name, for one run after another.

    Args:
        model: the ONNX file.
        images: [n, c, h, w] normalised; a last batch that the file cannot take whole is left out.

    Yields:
        The tensor's name and its values in one run.

    Raises:
        InputRejectedError: ONNX Runtime cannot load it.
    """
    proto = onnx.shape_inference.infer_shapes(open_onnx(model))
    known = {one.name: one for one in (*proto.graph.value_info, *proto.graph.output)}
    shown = {one.name for one in proto.graph.output}
    for node in proto.graph.node:
        for name in node.output:
            kind = known[name].type.tensor_type.elem_type if name in known else 0
            if name not in shown and kind == onnx.TensorProto.FLOAT:
                proto.graph.output.append(known[name])
                shown.add(name)
    session = open_bytes(proto.SerializeToString(), threads=1)
    entry = session.get_inputs()[0]
    batch = entry.shape[0] if isinstance(entry.shape[0], int) else min(16, len(images))
    names = [one.name for one in session.get_outputs()]
    for start in range(0, len(images) - batch + 1, batch):
        part = images[start : start + batch]
        yield from zip(names, session.run(names, {entry.name: part}), strict=True)
