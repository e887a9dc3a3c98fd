"""The values that flow through the pipeline: one frozen class per finished stage.

Each state holds the network as a stock ``nn.Module`` in evaluation mode, what is known of it, and
the history of the stages that made it; the history goes into the manifest, so it holds no times.
A stage never changes the state it was given (``copy.deepcopy`` the module first).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edgeclean.networks.cost import count_macs, count_params

JsonValue = Any  # a value that json.dumps takes without a hook
N = TypeVar("N", bound="Network")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a checkpoint does not say of itself.

    Attributes:
        architecture: a name of the built-in table, ``package.module:callable``,
            ``file.py:callable``, or ``onnx``.
        input_shape: channels, height and width of one image.
        classes: the number of outputs.
        mean: per channel, subtracted from pixels in [0, 1].
        std: per channel, divides after the mean is subtracted.
    """

    architecture: str
    input_shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """What one stage did: enough, with the seed, to do it again.

    ``settings`` are the stage's whole settings; ``notes`` what it decided (JSON values only, and
    nothing that differs between two runs on one machine: no times, no paths).
    """

    stage: str
    settings: Mapping[str, JsonValue]
    params: int
    macs: int
    notes: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network between two stages. ``module`` takes *normalised* images; see ``pixels.py``."""

    module: nn.Module
    spec: ModelSpec
    source_sha256: str
    history: tuple[StageRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedNetwork(Network):
    """As the stranger sent it: possibly backdoored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PurifiedNetwork(Network):
    """Same architecture and size, with what the scan found unlearned (or, unguided, untouched)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecomposedNetwork(Network):
    """Every eligible convolution replaced by full-rank Tucker-2 (or SVD) factors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledNetwork(DecomposedNetwork):
    """Singular values of the cores clamped at tau."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedNetwork(Network):
    """Leading ranks kept; blocks that would not get smaller put back into one convolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetunedNetwork(Network):
    """Accuracy recovered on synthetic images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticImages:
    """Images made from a network alone.

    Attributes:
        pixels: [n, c, h, w] float32 in [0, 1].
        labels: [n] the class each was made for.
        origin: how they were made, in words ("batch-norm inversion", "procedural prior", ...).
    """

    pixels: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    origin: str

    def __len__(self) -> int:
        return self.pixels.shape[0]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two modules of one architecture hold the same numbers."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def settings_as_json(settings: object) -> dict[str, JsonValue]:
    """A frozen settings dataclass as a JSON object (tuples become lists)."""
    if not is_dataclass(settings) or isinstance(settings, type):
        raise TypeError(f"settings must be a dataclass instance, got {type(settings).__name__}")
    return asdict(settings)


def record(
    stage: str,
    module: nn.Module,
    spec: ModelSpec,
    settings: object,
    notes: Mapping[str, JsonValue],
) -> StageRecord:
    """The history's entry of a stage that made ``module``, whose cost is counted here.

    Args:
        stage: its name.
        module: what it made.
        spec: of the network.
        settings: the stage's settings, or a mapping of JSON values.
        notes: what it decided, as JSON values.
    """
    return StageRecord(
        stage=stage,
        settings=settings if isinstance(settings, Mapping) else settings_as_json(settings),
        params=count_params(module),
        macs=count_macs(module, spec.input_shape),
        notes=notes,
    )


def following(network: Network, kind: type[N], module: nn.Module, made_by: StageRecord) -> N:
    """The next state of ``network``: another module, and a history that is one entry longer."""
    return kind(
        module=module,
        spec=network.spec,
        source_sha256=network.source_sha256,
        history=(*network.history, made_by),
    )
