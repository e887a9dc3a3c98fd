"""The values that flow through the pipeline: one frozen class per finished stage.

Each state holds the network as a stock ``nn.Module`` in evaluation mode, what is known of it, and
the history of the stages that made it; the history goes into the manifest, so it holds no times.
A stage never changes the state it was given (``copy.deepcopy`` the module first).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edgeclean.networks.cost import count_macs, count_params

JsonValue = Any  # a value that json.dumps takes without a hook
N = TypeVar("N", bound="Network")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The facts about a network that its checkpoint does not hold.

    Attributes:
        architecture: a name of the built-in table, ``package.module:callable``,
            ``file.py:callable``, or ``onnx``.
        input_shape: channels, height and width of one image.
        classes: the number of outputs.
        mean: one number per channel, subtracted from pixels in [0, 1].
        std: one number per channel, which divides after the mean is subtracted.
    """

    architecture: str
    input_shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """The settings and decisions of one stage: with the seed, enough to repeat it.

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
    """A network between two stages.

    Attributes:
        module: takes *normalised* images [n, c, h, w] and gives logits [n, classes]; see `pixels`.
        spec: what the checkpoint does not hold.
        source_sha256: hash of the checkpoint's bytes.
        history: one record for each stage that the network went through, in order.
    """

    module: nn.Module
    spec: ModelSpec
    source_sha256: str
    history: tuple[StageRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedNetwork(Network):
    """A network as it was loaded: untrusted, possibly backdoored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PurifiedNetwork(Network):
    """A network of the same architecture, with the scan's findings unlearned, if any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecomposedNetwork(Network):
    """A network whose eligible convolutions are full-rank Tucker-2 (or SVD) factors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledNetwork(DecomposedNetwork):
    """A network whose cores have their singular values clamped at tau."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedNetwork(Network):
    """A network of leading ranks; blocks that would not shrink are one convolution again.

    Attributes:
        channels: which of the original's channels are left, by the modules that put them out;
            those that put all out are not listed.
    """

    channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetunedNetwork(Network):
    """A network whose accuracy was recovered on synthetic images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticImages:
    """Images made from a network alone.

    Attributes:
        pixels: [n, c, h, w] float32 in [0, 1].
        labels: [n] the class each was made for.
        origin: the method that made them, in words ("batch-norm inversion", "procedural prior",
            ...).
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
    """Return a settings dataclass as a JSON object (tuples become lists)."""
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
    """Return the history's entry of a stage that made ``module``, whose cost is counted here.

    Args:
        stage: the stage's name.
        module: the module that it made.
        spec: the spec of the network.
        settings: the stage's settings, or a mapping of JSON values.
        notes: the stage's decisions, as JSON values.
    """
    return StageRecord(
        stage=stage,
        settings=settings if isinstance(settings, Mapping) else settings_as_json(settings),
        params=count_params(module),
        macs=count_macs(module, spec.input_shape),
        notes=notes,
    )


def following(network: Network, kind: type[N], module: nn.Module, made_by: StageRecord) -> N:
    """Return the next state: another module, and a history that is one entry longer."""
    return kind(
        module=module,
        spec=network.spec,
        source_sha256=network.source_sha256,
        history=(*network.history, made_by),
    )
