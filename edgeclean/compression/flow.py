"""Images on their way through a network: what enters one layer after the other.

Asked for in the order in which layers run, the inputs of all layers take one pass where the network
is a list of steps: the values between two steps are kept, and the next layer's follow from them.
Any other network runs from its beginning each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.networks.steps import StepNetwork

_IMAGES_AT_ONCE = 16


@dataclass(slots=True)
class _Part:
    """A few images: the step that runs next, and the values that it and later ones take."""

    images: Tensor
    values: dict[str, Tensor]
    place: int = 0


class Flow:
    """A network and images that run through it.

    A layer's weights may be changed after its inputs were asked for, and then count for all that
    comes after it; what comes before it must stay as it is.
    """

    def __init__(self, module: nn.Module, images: Float[Tensor, "n c h w"]) -> None:
        """Take a network in evaluation mode, and normalised images."""
        self.module = module
        self._steps = module.steps if isinstance(module, StepNetwork) else ()
        self._places: dict[str, int] = {}
        for place, step in enumerate(self._steps):
            self._places.setdefault(step.module, place)
        self._parts = [_Part(part, {}) for part in torch.split(images, _IMAGES_AT_ONCE)]
        self.images, self.device = len(images), images.device

    def place(self, layer: str) -> int:
        """Return the layer's place in the order of the steps; 0 where there are none."""
        return self._places.get(layer, 0)

    def inputs(self, layer: str) -> Iterator[Tensor]:
        """Yield what enters a layer, [n, ...] of a few images at a time.

        Raises:
            ValueError: the layer does not run.
        """
        for part in self._parts:
            if layer in self._places:
                self._advance(part, self._places[layer])
                yield part.values[self._steps[part.place].inputs[0]]
            else:
                yield _input_of(self.module, layer, part.images)

    @torch.no_grad()
    def outputs(self, layer: str = "") -> Float[Tensor, "n ..."]:
        """Return the network's outputs; what runs before the layer is taken from before."""
        outputs: list[Tensor] = []
        for part in self._parts:
            if layer in self._places:
                self._advance(part, self._places[layer])
                # Copies, for a step may work in place.
                values = {name: one.clone() for name, one in part.values.items()}
                self._run(values, part.place, len(self._steps))
                outputs.append(values[str(self.module.output_name)])
            else:
                outputs.append(self.module(part.images))
        return torch.cat(outputs)

    @torch.no_grad()
    def _advance(self, part: _Part, place: int) -> None:
        if not part.values or part.place > place:
            part.values, part.place = {str(self.module.input_name): part.images.clone()}, 0
        self._run(part.values, part.place, place)
        part.place = place

    def _run(self, values: dict[str, Tensor], start: int, stop: int) -> None:
        for step in self._steps[start:stop]:
            layer = self.module.get_submodule(step.module)
            values[step.output] = layer(*(values[name] for name in step.inputs))
            for name in step.finished:
                del values[name]


class _ReachedError(Exception):
    """The layer whose input was asked for has been reached; the rest need not run."""


def _input_of(module: nn.Module, layer: str, batch: Tensor) -> Tensor:
    seen: list[Tensor] = []

    def stop(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])
        raise _ReachedError

    handle = module.get_submodule(layer).register_forward_pre_hook(stop)
    try:
        with torch.no_grad():
            module(batch)
    except _ReachedError:
        return seen[0]
    finally:
        handle.remove()
    raise ValueError(f"layer {layer} does not run in the forward pass")
