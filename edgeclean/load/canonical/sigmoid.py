"""A network that gives one probability, which no stage takes: its logit stands before a sigmoid."""

from __future__ import annotations

import torch
from torch import nn

from edgeclean.errors import InputRejectedError
from edgeclean.networks.operations import Operation
from edgeclean.networks.state import ModelSpec
from edgeclean.networks.steps import Call, Step, StepNetwork

_aten = torch.ops.aten
_SIGMOIDS = frozenset({_aten.sigmoid.default, _aten.special_expit.default})
# What moves numbers and changes none: the sigmoid may as well come after it.
_MOVES = frozenset(
    {
        *(_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default),
        *(_aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.unsqueeze.default),
        *(_aten.flatten.using_ints, _aten.select.int, _aten.slice.Tensor),
        *(_aten.permute.default, _aten.transpose.int),
    }
)
# A logit leaves [0, 1] on images far from any that a network was made for; a probability cannot.
_STRETCHED = (1, 10, 1000)


def without_last_sigmoid(network: StepNetwork) -> StepNetwork | None:
    """Return the network of one column with the logit that its last sigmoid takes.

    Args:
        network: written out; its last step makes two columns of the one.

    Returns:
        The network without that sigmoid, of the same modules; None where it ends in none.
    """
    makers = {step.output: step for step in network.steps}
    reader = makers[network.output_name]
    maker = makers.get(reader.inputs[0])
    while maker is not None and _function(network, maker) in _MOVES and len(maker.inputs) == 1:
        reader, maker = maker, makers.get(maker.inputs[0])
    if maker is None or _function(network, maker) not in _SIGMOIDS:
        return None
    calls = [
        Call(
            module=step.module,
            inputs=maker.inputs if step is reader else step.inputs,
            output=step.output,
        )
        for step in network.steps
    ]
    if not any(maker.output in call.inputs for call in calls):
        calls = [call for call in calls if call.output != maker.output]
    modules = {call.module: network.get_submodule(call.module) for call in calls}
    shorter = StepNetwork(modules, calls, (network.input_name, network.output_name))
    shorter.train(network.training)
    return shorter


@torch.no_grad()
def refuse_probabilities(network: nn.Module, spec: ModelSpec) -> None:
    """Refuse a network of one column that lies in [0, 1] whatever the image.

    Args:
        network: gives [n, 2], the second column being the network's own.
        spec: its image shape.

    Raises:
        InputRejectedError: it does: taken for a logit, every image would be of class 1.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *spec.input_shape, generator=generator)
    plain = torch.stack([torch.zeros(spec.input_shape), torch.ones(spec.input_shape)])
    for images in (plain, *(noise * far for far in _STRETCHED)):
        column = network(images)[:, 1]
        if not bool(((column >= 0) & (column <= 1)).all()):
            return
    raise InputRejectedError(
        "the network's one column lies between 0 and 1 for every image that was tried, as a "
        "probability does, and it ends in no sigmoid that could be left out; let it give the "
        "logit, or two columns"
    )


def _function(network: StepNetwork, step: Step) -> object:
    module = network.get_submodule(step.module)
    return module.function if isinstance(module, Operation) else None
