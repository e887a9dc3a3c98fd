"""Convert a checked ONNX graph to an ``nn.Module`` of stock layers, and compare it with the file.

The importer is our own because the one library for it, onnx2torch 1.5.15, imports torchvision and
has no allow-list. No Python is generated from the graph: it becomes the modules and the steps of a
`networks.steps.StepNetwork`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx.numpy_helper
import torch
from onnx import ModelProto, NodeProto, TensorProto
from torch import Tensor, nn

from edgeclean.child.parcel import untrusted_answer
from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line
from edgeclean.load.isolation import parse_isolated
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx.asked import FILE, NOTHING, Asked, with_question
from edgeclean.load.onnx.comparison import check_same, plain_images
from edgeclean.load.onnx.cost import check_cost
from edgeclean.load.onnx.files import embed_files
from edgeclean.load.onnx.graph import (
    batch_of,
    image_input,
    node_label,
    own_opset,
    read_model,
    shape_of,
)
from edgeclean.load.onnx.guard import (
    NOTES,
    check_structure,
    external_tensors,
    parse_onnx,
    parse_task,
)
from edgeclean.load.onnx.node import NodeView
from edgeclean.load.onnx.operators import OPERATORS
from edgeclean.load.onnx.reference import answer_task, answers_of, with_images
from edgeclean.load.onnx.uniform import fill_number
from edgeclean.load.running_cost import bounded_cost
from edgeclean.load.trial_images import refuse_rounding, trial_images
from edgeclean.networks.steps import Call, StepNetwork, plain_name

MIXED_SHARE = 1e-3  # of an image's largest answer
SLOWEST_MACS_PER_SECOND = 4 * 10**8  # of one image, which stands for all that are run

_DEFAULT_LIMITS = LoadLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedOnnx:
    """A network read from an ONNX file.

    Attributes:
        module: takes normalised images [n, c, h, w].
        input_shape: channels, height and width, as the graph fixes them or as they were given.
        outputs: the columns of what it gives; the classes.
        external_sha256: of each file with weights that was read, by its name.
        notes: what was done to the graph before it was converted, a few words each.
        comparison: how near its answers are to ONNX Runtime's; see `comparison.check_same`.
        rounded: what the file rounds to and the module does not, such as "float16", or "".
    """

    module: StepNetwork
    input_shape: tuple[int, int, int]
    outputs: int
    external_sha256: Mapping[str, str]
    notes: tuple[str, ...]
    comparison: Mapping[str, float]
    rounded: str


def import_onnx(
    contents: bytes,
    limits: LoadLimits,
    *,
    folder: Path,
    asked: Asked = NOTHING,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> ImportedOnnx:
    """Check, simplify and convert an ONNX model, and compare what came of it with the file.

    Args:
        contents: the model.
        limits: the most that it may cost.
        folder: the folder in which plain files with its weights may lie.
        asked: what is known of the network beside the file.
        mean: of its pixels in [0, 1], one number or one for each channel.
        std: likewise; the images of the comparison are normalised by both.

    Raises:
        InputRejectedError: it breaks a rule of ``guard``, a file with weights is missing or
            no plain file, a node cannot be converted (names the node or tensor), its images have
            another shape than was said, or the network does not answer as the file does.
    """
    contents, digests, model = _checked(contents, limits, folder, asked)
    module, shape = converted_model(model, limits)
    if asked.input_shape not in (None, shape):
        own, given = ("x".join(map(str, one)) for one in (shape, asked.input_shape))
        raise InputRejectedError(
            f"the graph takes images of {own}, and {given} was said; give {own}"
        )
    images = plain_images(shape, mean, std)
    message = with_images(asked, contents, images.numpy())
    answers = answers_of(parse_isolated(answer_task, message, _for_running(limits, model)))
    return ImportedOnnx(
        module=module,
        input_shape=shape,
        outputs=_outputs(model),
        external_sha256=digests,
        notes=notes_of(model),
        comparison=check_same(module, images, answers),
        rounded=answers.rounded,
    )


def describe_onnx(
    contents: bytes, limits: LoadLimits, *, folder: Path, asked: Asked = NOTHING
) -> tuple[tuple[int, int, int], int]:
    """Return the image shape and the number of classes that an ONNX file says it has.

    Raises:
        InputRejectedError: as `import_onnx`, but for what converts and compares.
    """
    _, _, model = _checked(contents, limits, folder, asked)
    return image_input(model)[1], _outputs(model)


def _checked(
    contents: bytes, limits: LoadLimits, folder: Path, asked: Asked
) -> tuple[bytes, Mapping[str, str], ModelProto]:
    """Return a file with its weights in it, the digests of where they were, and it as parsed."""
    digests: Mapping[str, str] = {}
    parsed = parse_isolated(parse_task, with_question(asked, {FILE: contents}), limits)
    if FILE not in parsed.files:
        contents, digests = embed_files(contents, folder, limits)
        parsed = parse_isolated(parse_task, with_question(asked, {FILE: contents}), limits)
    return contents, digests, checked_model(parsed.files.get(FILE, b""), limits)


def convert_checked(
    contents: bytes, limits: LoadLimits
) -> tuple[StepNetwork, tuple[int, int, int]]:
    """Build the network from the answer of the parsing process; return it with its image shape.

    Raises:
        InputRejectedError: see `import_onnx`; the bytes are as untrusted as what it was sent.
    """
    return converted_model(checked_model(contents, limits), limits)


def import_plain(contents: bytes, limits: LoadLimits) -> StepNetwork:
    """Convert a self-contained ONNX file within this process, for one that is confined already.

    The answers are not compared with the file's: what is made of the module is.

    Raises:
        InputRejectedError: see `import_onnx`.
    """
    checked = parse_onnx(contents, limits)
    if checked is None:
        raise InputRejectedError("the ONNX file keeps weights in other files")
    return convert_checked(checked, limits)[0]


def checked_model(contents: bytes, limits: LoadLimits) -> ModelProto:
    """Read the answer of the parsing process.

    Raises:
        InputRejectedError: it breaks a rule of ``guard``.
    """
    model = read_model(contents)
    check_structure(model, limits)
    check_cost(model, limits)
    if external_tensors(model):
        raise InputRejectedError("the simplified graph refers to other files")
    return model


def converted_model(
    model: ModelProto, limits: LoadLimits = _DEFAULT_LIMITS
) -> tuple[StepNetwork, tuple[int, int, int]]:
    """Build the network of a checked model; return it with its image shape.

    Raises:
        InputRejectedError: a node cannot be converted, or the network mixes the images of a batch.
    """
    module = build_network(model, flat=True)
    module.float().eval()
    _, shape = image_input(model)
    check_batches(module, shape, limits)
    return module, shape


def check_computed_as_written(imported: ImportedOnnx) -> None:
    """Check that a network, which is imported as float32, stands for the file where time counts.

    Raises:
        InputRejectedError: the file computes in fewer bits.
    """
    if imported.rounded:
        raise InputRejectedError(
            f"the file computes in {imported.rounded} numbers, and PyTorch would be measured in "
            "float32; measure a float32 file, or this one with ONNX Runtime"
        )


def notes_of(model: ModelProto) -> tuple[str, ...]:
    """Return what the parsing process says that it did, a few short texts at most.

    Raises:
        InputRejectedError: it says something else.
    """
    with untrusted_answer(InputRejectedError("the parsing process's notes are damaged")):
        texts = [one.value for one in model.metadata_props if one.key == NOTES]
        return tuple(str(note)[:300] for text in texts[:1] for note in json.loads(text)[:16])


def _outputs(model: ModelProto) -> int:
    """Return the columns of the output."""
    _, *columns = shape_of(model.graph.output[0]) or (0,)
    return math.prod(columns)


def _for_running(limits: LoadLimits, model: ModelProto) -> LoadLimits:
    """Return limits for running a model whose cost was found to be within the others."""
    weights = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    weights += sum(
        math.prod(shape_of(value))
        for node in model.graph.node
        if node.op_type == "ConstantOfShape"
        for value in model.graph.value_info
        if value.name == node.output[0]
    )
    return dataclasses.replace(
        limits,
        memory_bytes=limits.memory_bytes + 4 * weights,
        cpu_seconds=limits.cpu_seconds + limits.macs // SLOWEST_MACS_PER_SECOND,
    )


def build_network(model: ModelProto, *, flat: bool = False) -> StepNetwork:
    """Convert a checked and simplified model.

    Args:
        model: the model.
        flat: whether an output [n, classes, 1, 1] loses its planes.

    Raises:
        InputRejectedError: a node cannot be converted.
    """
    graph = model.graph
    constants = {tensor.name: _tensor(tensor) for tensor in graph.initializer}
    known = [*graph.value_info, *graph.input, *graph.output]
    shapes = {value.name: shape_of(value) for value in known}
    types = {value.name: int(value.type.tensor_type.elem_type) for value in known}
    opset, batch = own_opset(model), batch_of(model)
    modules: dict[str, nn.Module] = {}
    numbers: dict[str, int] = {}
    calls: list[Call] = []
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant(node)
            continue
        if node.op_type == "ConstantOfShape":
            constants[node.output[0]] = _repeated(node, constants)
            continue
        view = NodeView(
            node=node, constants=constants, shapes=shapes, types=types, opset=opset, batch=batch
        )
        inputs = tuple(name for name in node.input if name and name not in constants)
        for name, module in zip(filter(None, node.output), _converted(view, inputs), strict=True):
            modules[_module_name(node, modules, numbers)] = module
            calls.append(Call(module=next(reversed(modules)), inputs=inputs, output=name))
    ends = (image_input(model)[0], graph.output[0].name)
    if flat and _has_flat_end(shape_of(graph.output[0])):
        modules[plain_name("flat_logits", "", modules)] = nn.Flatten()
        calls.append(
            Call(module=next(reversed(modules)), inputs=ends[1:], output=f"{ends[1]}/flat")
        )
        ends = (ends[0], calls[-1].output)
    return StepNetwork(modules, calls, ends)


def _has_flat_end(shape: tuple[int, ...]) -> bool:
    """Return whether a shape is [n, classes, 1, 1], or with these axes in another order."""
    return len(shape) > 2 and sum(side != 1 for side in shape[1:]) <= 1


def _converted(view: NodeView, inputs: tuple[str, ...]) -> list[nn.Module]:
    """Return the modules of a node's outputs, having read all its constants."""
    if view.node.op_type not in OPERATORS:
        raise view.refusal(
            "it works on the image here, and is read only where a shape or a constant is computed; "
            "write it otherwise (of parts that are written into a tensor, torch.cat), or give "
            "--arch and a checkpoint"
        )
    if not inputs:
        raise view.refusal("it does not depend on the image")
    try:
        made = OPERATORS[view.node.op_type](view)
    except (ArithmeticError, LookupError, ValueError, TypeError, RuntimeError) as error:
        reason = first_line(error)
        raise view.refusal(f"cannot be converted ({reason})") from error
    unread = [
        place
        for place, name in enumerate(view.node.input)
        if name in view.constants and place not in view.read
    ]
    if unread:
        raise view.refusal(f"input {unread[0]} is a constant, which is not supported there")
    if isinstance(made, list):
        return [module for module, name in zip(made, view.node.output, strict=True) if name]
    if any(view.node.output[1:]):
        raise view.refusal("more than one output is not supported")
    return [made]


def check_batches(
    module: nn.Module, shape: tuple[int, int, int], limits: LoadLimits = _DEFAULT_LIMITS
) -> None:
    """Check that two images at once give what they give alone: a graph may mix the batch axis.

    Raises:
        InputRejectedError: they do not, or not as rounded; they are not finite, two images do not
            run at all, or one costs more than the limits (`running_cost`).
    """
    images = trial_images(shape, 2)
    try:
        with torch.no_grad():
            with bounded_cost(module, shape, limits):
                first = module(images[:1])
            alone = torch.cat([first, module(images[1:])])
            together = module(images)
    except InputRejectedError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a wrong graph makes torch raise
        reason = first_line(error)
        raise InputRejectedError(f"the network does not run on two images ({reason})") from None
    if not bool(torch.isfinite(alone).all()):
        raise InputRejectedError(
            "the network's answer for a plain image is not finite: it divides by 0, such as by the "
            "deviation of a plane that is constant, or its numbers overflow; add a small number to "
            "the divisor, and export it anew"
        )
    if together.shape != alone.shape or not all(map(_near, together, alone)):
        refuse_rounding(module, images)
        raise InputRejectedError(
            "the network mixes the images of a batch; export it with a free batch axis"
        )


def _near(got: Tensor, alone: Tensor) -> bool:
    """Compare two answers to one image by a share of its largest: probabilities may be tiny."""
    return bool(((got - alone).abs() <= MIXED_SHARE * alone.abs().max()).all())


def _module_name(node: NodeProto, taken: Mapping[str, nn.Module], numbers: dict[str, int]) -> str:
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
    return plain_name("_".join(kept), node.op_type, taken, numbers)


def _tensor(tensor: TensorProto) -> Tensor:
    try:
        return torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
    except (ValueError, TypeError) as error:
        raise InputRejectedError(f"tensor {tensor.name[:80]!r} is damaged ({error})") from None


def _repeated(node: NodeProto, constants: Mapping[str, Tensor]) -> Tensor:
    """Return one number in the shape of a weight; its bytes were counted by `guard.check_size`."""
    if node.input[0] not in constants:
        raise InputRejectedError(f"{node_label(node)}: its shape is computed")
    return torch.full(constants[node.input[0]].tolist(), fill_number(node))


def _constant(node: NodeProto) -> Tensor:
    attribute = node.attribute[0]
    if attribute.name == "value":
        return _tensor(attribute.t)
    return torch.tensor(onnx.helper.get_attribute_value(attribute))
