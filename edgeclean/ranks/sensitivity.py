"""How much the network's outputs change when one layer alone is truncated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.factors.fits import Fit
from edgeclean.ranks.candidates import Candidate

_PROBES = 6
_LEAST = 1e-12  # losses and effects are interpolated on logarithms


class OutputEffect:
    """Measures changes of a network's outputs on fixed images.

    The effect of a change is the squared difference of the outputs over their square, both about
    their mean over the classes, which the softmax does not see.
    """

    def __init__(self, module: nn.Module, images: Float[Tensor, "n c h w"]) -> None:
        """Take a network in its original shape (it is changed while measuring, and put back)."""
        self._module = module
        self._images = images
        self._outputs = self._run()
        self._square = float(self._outputs.square().sum())

    def effects(self, layer: str, fit: Fit, forms: Sequence[Candidate]) -> list[float]:
        """The effect of every form of a layer.

        A few are measured; between them the effect is interpolated in the form's loss, both on a
        logarithmic scale, and never falls as the loss grows.
        """
        factored = [form for form in forms if form.ranks is not None]
        spread = np.linspace(0, len(factored) - 1, min(_PROBES, len(factored)))
        probed = [factored[index] for index in sorted({round(place) for place in spread})]
        if not probed:
            return [0.0 for _ in forms]
        points = sorted((form.loss, self._measure(layer, fit, form)) for form in probed)
        losses = np.log([max(loss, _LEAST) for loss, _ in points])
        effects = np.log(np.maximum.accumulate([max(effect, _LEAST) for _, effect in points]))
        return [
            0.0
            if form.ranks is None
            else float(np.exp(np.interp(np.log(max(form.loss, _LEAST)), losses, effects)))
            for form in forms
        ]

    def _measure(self, layer: str, fit: Fit, form: Candidate) -> float:
        if form.ranks is None:
            return 0.0
        weight = self._module.get_submodule(layer).weight
        if not isinstance(weight, Tensor):
            raise TypeError(f"layer {layer} has no weight")
        original = weight.detach().clone()
        try:
            with torch.no_grad():
                weight.copy_(fit.factors(form.ranks).kernel())
            change = self._run() - self._outputs
        finally:
            with torch.no_grad():
                weight.copy_(original)
        return float(change.square().sum()) / self._square if self._square > 0 else 0.0

    def _run(self) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = self._module(self._images).flatten(1).double()
        return outputs - outputs.mean(dim=1, keepdim=True) if outputs.shape[1] > 1 else outputs
