"""Convert a checked ONNX graph to an ``nn.Module`` of stock layers.

The importer is our own because the one library for it, onnx2torch 1.5.15, imports torchvision and
has no allow-list. No Python is generated from the graph: it becomes the modules and the steps of a
`networks.steps.StepNetwork`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx.numpy_helper
import torch
from onnx import ModelProto, NodeProto, TensorProto
from torch import Tensor, nn

from edgeclean.errors import InputRejectedError
from edgeclean.load.isolation import parse_isolated
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx.cost import check_cost
from edgeclean.load.onnx.files import embed_files
from edgeclean.load.onnx.guard import (
    COMPLETE,
    check_structure,
    external_tensors,
    image_input,
    parse_onnx,
    read_model,
)
from edgeclean.load.onnx.node import NodeView
from edgeclean.load.onnx.operators import OPERATORS
from edgeclean.load.running_cost import bounded_cost
from edgeclean.networks.steps import Call, StepNetwork, plain_name

_DEFAULT_LIMITS = LoadLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedOnnx:
    """The network, the image shape that the graph fixes, and the SHA-256 of each file it read."""

    module: StepNetwork
    input_shape: tuple[int, int, int]
    external_sha256: Mapping[str, str]


def import_onnx(contents: bytes, limits: LoadLimits, *, folder: Path) -> ImportedOnnx:
    """Check, simplify and convert an ONNX model; BatchNorm stays BatchNorm.

    Args:
        contents: the model.
        limits: the most that it may cost.
        folder: the folder in which plain files with its weights may lie.

    Raises:
        InputRejectedError: it breaks a rule of ``guard``, a file with weights is missing or
            no plain file, or a node cannot be converted; names the node or tensor.
    """
    checked = parse_isolated(parse_onnx, contents, limits)
    digests: dict[str, str] = {}
    if not checked.startswith(COMPLETE):
        contents, digests = embed_files(contents, folder, limits)
        checked = parse_isolated(parse_onnx, contents, limits)
    module, shape = convert_checked(checked[1:], limits)
    return ImportedOnnx(module=module, input_shape=shape, external_sha256=digests)


def convert_checked(
    contents: bytes, limits: LoadLimits
) -> tuple[StepNetwork, tuple[int, int, int]]:
    """Build the network from the answer of the parsing process; return it with its image shape.

    Raises:
        InputRejectedError: see `import_onnx`; the bytes are as untrusted as what it was sent.
    """
    model = read_model(contents)
    check_structure(model, limits)
    check_cost(model, limits)
    if external_tensors(model):
        raise InputRejectedError("the simplified graph refers to other files")
    module = build_network(model)
    module.float().eval()
    _, shape = image_input(model)
    check_batches(module, shape, limits)
    return module, shape


def build_network(model: ModelProto) -> StepNetwork:
    """Convert a checked and simplified model.

    Raises:
        InputRejectedError: a node cannot be converted.
    """
    graph = model.graph
    constants = {tensor.name: _tensor(tensor) for tensor in graph.initializer}
    known = [*graph.value_info, *graph.input, *graph.output]
    shapes = {
        value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in known
    }
    opset = max(entry.version for entry in model.opset_import)
    modules: dict[str, nn.Module] = {}
    calls: list[Call] = []
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant(node)
            continue
        view = NodeView(node=node, constants=constants, shapes=shapes, opset=opset)
        if node.op_type not in OPERATORS:
            raise view.refusal("it is computed from constants, yet could not be folded into one")
        if any(node.output[1:]):
            raise view.refusal("more than one output is not supported")
        inputs = tuple(name for name in node.input if name and name not in constants)
        if not inputs:
            raise view.refusal("it does not depend on the image")
        name = _module_name(node, modules)
        try:
            modules[name] = OPERATORS[node.op_type](view)
        except (KeyError, IndexError, ValueError, TypeError, RuntimeError, OverflowError) as error:
            reason = (str(error).splitlines() or [""])[0][:200]
            raise view.refusal(f"cannot be converted ({reason})") from error
        calls.append(Call(module=name, inputs=inputs, output=node.output[0]))
    ends = (image_input(model)[0], graph.output[0].name)
    return StepNetwork(modules, calls, ends)


def check_batches(
    module: nn.Module, shape: tuple[int, int, int], limits: LoadLimits = _DEFAULT_LIMITS
) -> None:
    """Check that two images at once give what they give alone: a graph may mix the batch axis.

    Raises:
        InputRejectedError: they do not, two images do not run at all, or one costs more than the
            limits (`running_cost`).
    """
    images = torch.linspace(0, 1, 2 * math.prod(shape)).view(2, *shape)
    try:
        with torch.no_grad():
            with bounded_cost(module, shape, limits):
                first = module(images[:1])
            alone = torch.cat([first, module(images[1:])])
            together = module(images)
    except InputRejectedError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a wrong graph makes torch raise
        reason = (str(error).splitlines() or [""])[0][:200]
        raise InputRejectedError(f"the network does not run on two images ({reason})") from None
    if together.shape != alone.shape or not torch.allclose(together, alone, rtol=1e-3, atol=1e-3):
        raise InputRejectedError(
            "the network mixes the images of a batch, or its output is not finite; export it with "
            "a free batch axis"
        )


def _module_name(node: NodeProto, taken: Mapping[str, nn.Module]) -> str:
    """Turn ``/layer1/layer1.0/conv1/Conv`` into ``layer1_0_conv1``: [A-Za-z0-9_] alone."""
    scopes = [scope for scope in node.name.split("/") if scope]
    if len(scopes) > 1 and scopes[-1].startswith(node.op_type):  # a flat name is all there is
        scopes.pop()
    # torch writes each scope with its parents: "layer1/layer1.0" has "layer1" twice.
    inner_scopes = [*scopes, ""][1:]
    kept = [
        scope
        for scope, inner in zip(scopes, inner_scopes, strict=False)
        if not inner.startswith(f"{scope}.")
    ]
    return plain_name("_".join(kept), node.op_type, taken)


def _tensor(tensor: TensorProto) -> Tensor:
    try:
        return torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
    except (ValueError, TypeError) as error:
        raise InputRejectedError(f"tensor {tensor.name[:80]!r} is damaged ({error})") from None


def _constant(node: NodeProto) -> Tensor:
    attribute = node.attribute[0]
    if attribute.name == "value":
        return _tensor(attribute.t)
    return torch.tensor(onnx.helper.get_attribute_value(attribute))
