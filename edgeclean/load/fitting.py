"""Put the weights of a checkpoint into the architecture that was named for them.

A checkpoint may hold several networks (a student and its teacher, an average beside the last
weights), each under names of the tool that wrote it. The rule is one: exactly one of them must fit
the architecture, or the user says which.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.files.text import MOST_OF_AN_ENTRY, first_line, listed
from edgeclean.load.architectures import build_architecture, list_architectures
from edgeclean.load.architectures.libraries import is_of_library
from edgeclean.load.canonical.answers import way_out
from edgeclean.load.limits import LoadLimits
from edgeclean.load.names import Architecture, Renamed, closest, fits, unwrapped
from edgeclean.load.pickled_layers import Layers, differences
from edgeclean.load.running_cost import bounded_cost
from edgeclean.load.state_dict import check_names_and_shapes, fit_weights
from edgeclean.networks.layers import evaluated
from edgeclean.networks.state import JsonValue, ModelSpec

T = TypeVar("T")
_Networks = Mapping[tuple[str, ...], Mapping[str, Tensor]]
WHOLE_FILE = "."
_ANOTHER_SEED = 2**31 - 19
_NOT_AGAIN = (
    "and no state dict holds that, so that the network that was trained cannot be made "
    "again; register it as a buffer that is saved, or export the network to ONNX and give that file"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedNetworks:
    """What was read of a file.

    Attributes:
        networks: tensors by name, under the keys that they lie under in the file.
        beside: what else a pickle asks for, unread.
        layers: what pickled modules say of their layers, under the same keys.
        versions: the versions of the layers' classes that state dicts note, under the same keys.
        aside: tensors of pickled modules that no state dict of theirs would hold.
    """

    networks: _Networks
    beside: tuple[str, ...] = ()
    layers: Mapping[tuple[str, ...], Layers] = field(default_factory=dict)
    versions: Mapping[tuple[str, ...], Mapping[str, int]] = field(default_factory=dict)
    aside: _Networks = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """One way to take a network from the file, and what it is called to the user."""

    label: str
    path: tuple[str, ...]
    renamed: Renamed


def fitted(
    saved: SavedNetworks, spec: ModelSpec, limits: LoadLimits, code_folder: Path | None
) -> tuple[nn.Module, dict[str, JsonValue]]:
    """Build the architecture and put in the one network of the file that fits it.

    Returns:
        The module in evaluation mode, and notes for the stage's record: "network", which one of
        the file it is; "names", what was undone; "beside", what was left unread; each only where
        there is something to tell.

    Raises:
        InputRejectedError: no network fits, or several do and ``limits.state_dict`` names none.
        UsageError: the architecture is unknown, or the user's own code for it failed.
    """
    again: nn.Module | None = None
    if spec.architecture in list_architectures():
        # Without memory: a million classes that the file does not have would take gigabytes.
        with torch.device("meta"):
            way = _chosen(saved, _by_keys(spec), limits.state_dict)
        module = _built(spec, way.renamed.tensors, code_folder)
    else:
        if is_of_library(spec.architecture):
            _check_foreseen(saved, spec, limits)
        module = _awake(spec, limits, code_folder)
        way = _chosen_of_code(saved, module, limits.state_dict)
        again = _made_again(module, spec, limits, code_folder)
    for one in (module,) if again is None else (module, again):
        fit_weights(one, way.renamed.tensors, _renamed(saved.versions, way))
        evaluated(one)  # not before: what a layer does to its weights then, it does to these
    if again is not None:
        _refuse_drawn_values(module, again, spec, limits)
    _refuse_others(_unsaved(module), _renamed(saved.aside, way))
    notes = {
        "differences": list(differences(_renamed(saved.layers, way), module)),
        "network": way.label if way.label != WHOLE_FILE else "",
        "names": list(way.renamed.done),
        "beside": [name[:MOST_OF_AN_ENTRY] for name in saved.beside],
    }
    return module, {key: note for key, note in notes.items() if note}


def told(notes: Mapping[str, JsonValue]) -> tuple[str, ...]:
    """Return sentences about what was done to a checkpoint's names, from the notes of `fitted`."""
    sentences = []
    if "network" in notes:
        sentences.append(f"Of the checkpoint, the network under {notes['network']} was taken.")
    if "names" in notes:
        sentences.append(f"To fit the architecture: {'; '.join(notes['names'])}.")
    if "differences" in notes:
        sentences.append(
            f"The file's own network was not made by this code as it is: "
            f"{'; '.join(notes['differences'])}."
        )
    if "beside" in notes:
        sentences.append(f"Beside the weights, not read: {', '.join(notes['beside'])}.")
    return tuple(sentences)


def _by_keys(spec: ModelSpec) -> Architecture:
    return lambda keys: build_architecture(spec.architecture, spec, keys).state_dict()


def _check_foreseen(saved: SavedNetworks, spec: ModelSpec, limits: LoadLimits) -> None:
    """Refuse what fits no network of a library before that takes memory: a file says its classes.

    Some networks cannot be built without memory, and are compared when they are there.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            needed = build_architecture(spec.architecture, spec, ()).state_dict()
    except UsageError:
        return
    _chosen(saved, lambda _: needed, limits.state_dict)


def _built(spec: ModelSpec, keys: Collection[str], code_folder: Path | None) -> nn.Module:
    # Every weight is replaced, so how they are drawn does not matter, but the caller's random
    # numbers must not move.
    with torch.random.fork_rng(devices=[]):
        module = build_architecture(spec.architecture, spec, keys, code_folder=code_folder)
    _refuse_script(module)
    return module.float()


def _awake(spec: ModelSpec, limits: LoadLimits, code_folder: Path | None) -> nn.Module:
    """Build a network of the user's or a library's code, with no lazy layer left."""
    module = _built(spec, (), code_folder)
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        _wake_(evaluated(module), spec, limits)
        module.train()
    for name, kept in module.state_dict().items():
        if not isinstance(kept, Tensor):
            raise InputRejectedError(
                f"{name} is a {type(kept).__name__}, which the code keeps beside the weights and "
                "the file's is not read; let get_extra_state return a tensor, or export the "
                "network to ONNX and give that file"
            )
    return module


def _made_again(
    module: nn.Module, spec: ModelSpec, limits: LoadLimits, code_folder: Path | None
) -> nn.Module | None:
    """Build a network once more, with other random numbers; None where a library made it.

    Raises:
        InputRejectedError: a tensor that its state dict does not hold is another one.
    """
    library = is_of_library(spec.architecture)
    if library and not _unsaved(module):
        return None
    with _other_random_numbers():
        again = _awake(spec, limits, code_folder)
    if not module.training:
        evaluated(again)
    _refuse_drawn(module, again)
    return None if library else again


def _chosen_of_code(saved: SavedNetworks, module: nn.Module, choice: str) -> _Way:
    """Return the one way in which a network of the file fits, be it of training or of evaluation.

    Some layers have other weights in evaluation mode; the module is put into it only where those
    are the ones that the file has.
    """
    needed = module.state_dict()
    try:
        return _chosen(saved, lambda _: needed, choice)
    except InputRejectedError:
        inference = evaluated(module).state_dict()
        if inference.keys() == needed.keys():
            raise
        return _chosen(saved, lambda _: inference, choice)


def _renamed(said: Mapping[tuple[str, ...], Mapping[str, T]], way: _Way) -> dict[str, T]:
    """Return what the file says of its layers, under the names that the architecture has."""
    prefix = way.renamed.prefix
    return {
        unwrapped(f"{name}.".removeprefix(prefix))[:-1]: one
        for name, one in said.get(way.path, {}).items()
        if f"{name}.".startswith(prefix)
    }


@contextmanager
def _other_random_numbers() -> Iterator[None]:
    """Within, code draws other numbers than it would; the caller's do not move."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_ANOTHER_SEED)
        random.seed(_ANOTHER_SEED)
        np.random.seed(_ANOTHER_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def _refuse_drawn(module: nn.Module, again: nn.Module) -> None:
    """Refuse tensors that the code draws at random and that no state dict holds.

    Raises:
        InputRejectedError: made once more, the network has others.
    """
    others = _unsaved(again)
    for name, tensor in _unsaved(module).items():
        if name in others and not torch.equal(others[name], tensor):
            raise InputRejectedError(
                f"{name} is drawn at random when the network is made, {_NOT_AGAIN}"
            )


def _refuse_drawn_values(
    module: nn.Module, again: nn.Module, spec: ModelSpec, limits: LoadLimits
) -> None:
    """Refuse what is drawn at random and is no tensor of the network: an order, a wiring.

    A network that does not run, or answers differently from run to run, is told so later.

    Raises:
        InputRejectedError: made once more, with the same weights, it answers otherwise.
    """
    image = torch.rand(1, *spec.input_shape, generator=torch.Generator().manual_seed(1))

    def answer(one: nn.Module) -> list[Tensor]:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            with bounded_cost(one, spec.input_shape, limits):
                answered = one(image.clone())
            return [leaf for leaf in tree_leaves(answered) if isinstance(leaf, Tensor)]

    try:
        first, other = answer(module), answer(again)
        differs = not _close(first, other) and _close(first, answer(module))
    except InputRejectedError:
        raise
    except Exception:  # noqa: BLE001 - a network that does not run may raise what it likes
        return
    if differs:
        raise InputRejectedError(
            "numbers that decide what the network computes are drawn at random when it is made, "
            f"{_NOT_AGAIN}"
        )


def _close(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(
        one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-5)
        for one, other in zip(some, others, strict=True)
    )


def _refuse_others(unsaved: Mapping[str, Tensor], aside: Mapping[str, Tensor]) -> None:
    """Refuse tensors beside the state dict that are others in the file's own module.

    Raises:
        InputRejectedError: naming the first.
    """
    for name, own in unsaved.items():
        theirs = aside.get(name, own)
        # Another machine may have rounded it otherwise, and a network may be kept in half numbers.
        share = 1e-2 if theirs.is_floating_point() and theirs.element_size() < 4 else 1e-5
        if theirs.shape != own.shape or not torch.allclose(
            theirs.double(), own.double(), rtol=share, atol=1e-6, equal_nan=True
        ):
            raise InputRejectedError(
                f"the file holds a whole network, in which {name} has other numbers than the "
                "named code gives it, and no state dict holds that; give the code that made it, or "
                "register it as a buffer that is saved"
            )


def _unsaved(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network that its state dict has in no form, by their names."""
    saved = {_address(one) for one in module.state_dict().values()}
    found: dict[str, Tensor] = {}
    for place, part in module.named_modules():
        kept = {name: part._buffers[name] for name in part._non_persistent_buffers_set}
        plain = {name: one for name, one in vars(part).items() if isinstance(one, Tensor)}
        # The older norms and prunings keep what they make of others as an attribute.
        made = {name for name in plain if {f"{name}_g", f"{name}_orig"} & part._parameters.keys()}
        for name, one in {**kept, **plain}.items():
            if one is not None and _address(one) and name not in made:
                found[f"{place}.{name}" if place else name] = one
    return {name: one for name, one in found.items() if _address(one) not in saved}


def _address(tensor: Tensor) -> int:
    """Return where the numbers lie; 0 for a tensor that has them in no one place, or has none."""
    if tensor.layout is not torch.strided or is_lazy(tensor):
        return 0
    return tensor.untyped_storage().data_ptr()


def _refuse_script(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            which = f"its part {name}" if name else "the network"
            raise InputRejectedError(
                f"{which} is TorchScript, into which no stage can look or put a layer; let the "
                "code give the module as it was before torch.jit.script or torch.jit.trace, or "
                "export the network to ONNX and give that file"
            )


def _wake_(module: nn.Module, spec: ModelSpec, limits: LoadLimits) -> None:
    """Give lazy layers their shapes, in place: those take them from the first image."""
    if not any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        return
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            bounded_cost(module, spec.input_shape, limits),
        ):
            module(torch.zeros(1, *spec.input_shape))
    except InputRejectedError:
        raise
    except Exception as error:  # noqa: BLE001 - a module that does not fit raises what it likes
        shape = "x".join(map(str, spec.input_shape))
        reason = first_line(error)
        raise InputRejectedError(
            f"the network's lazy layers get no shape from an image of {shape} "
            f"({type(error).__name__}: {reason}); {way_out(module)}"
        ) from None
    asleep = [name for name, tensor in module.named_parameters() if is_lazy(tensor)]
    if asleep:
        raise InputRejectedError(
            f"the network's lazy layer {asleep[0].rpartition('.')[0]!r} does not run on an image, "
            "so that it has no shape; take it out, or give it one"
        )


def _chosen(saved: SavedNetworks, architecture: Architecture, choice: str) -> _Way:
    """Return the one way in which a network of the file fits, or the one that the user chose."""
    ways = _ways(saved.networks, architecture) or _ways(_of_parts(saved.networks), architecture)
    if not ways:
        raise _unfit(saved, architecture)
    if choice:
        chosen = [way for way in ways if way.label == choice]
        if not chosen:
            raise UsageError(
                f"--state-dict {choice!r}: no network of that name fits; "
                f"{_offered([way.label for way in ways])}"
            )
        return chosen[0]
    others = [way for way in ways[1:] if not _same(way.renamed.tensors, ways[0].renamed.tensors)]
    if others:
        labels = [ways[0].label, *(way.label for way in others)]
        raise InputRejectedError(
            f"the checkpoint holds {len(labels)} networks that fit, under {listed(labels)}; "
            f"choose one, such as --state-dict {labels[0]}"
        )
    return ways[0]


def _ways(networks: _Networks, architecture: Architecture) -> list[_Way]:
    ways: dict[str, _Way] = {}
    for path, tensors in networks.items():
        for renamed in fits(tensors, architecture):
            label = _label(path, renamed.prefix)
            ways.setdefault(label, _Way(label=label, path=path, renamed=renamed))
    return list(ways.values())


def _of_parts(networks: _Networks) -> _Networks:
    """Return the networks whose parts, saved each for itself, are all that lies under one key."""
    together: dict[tuple[str, ...], dict[str, Tensor]] = {}
    for path, tensors in networks.items():
        for depth in range(len(path)):
            named = {".".join((*path[depth:], name)): one for name, one in tensors.items()}
            together.setdefault(path[:depth], {}).update(named)
    return together


def _unfit(saved: SavedNetworks, architecture: Architecture) -> InputRejectedError:
    """Return why no network fits: of several, about the one that comes closest."""
    nearest = [closest(tensors, architecture) for tensors in saved.networks.values()]
    needed = architecture(nearest[0].tensors)
    best = max(nearest, key=lambda one: len(one.tensors.keys() & needed.keys()))
    labels = [_label(path, "") for path in saved.networks]
    try:
        check_names_and_shapes(architecture(best.tensors), best.tensors)
        reason = "its names cannot be told apart"
    except InputRejectedError as error:
        reason = str(error)
    if len(labels) == 1:
        return InputRejectedError(reason)
    near = labels[nearest.index(best)]
    return InputRejectedError(
        f"the checkpoint holds {len(labels)} networks, under {listed(labels)}, and none fits; of "
        f"{near}: {reason}"
    )


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _label(path: tuple[str, ...], prefix: str) -> str:
    return "/".join((*path, *([prefix[:-1]] if prefix else []))) or WHOLE_FILE


def _offered(labels: list[str]) -> str:
    if labels == [WHOLE_FILE]:
        return "the file itself is the one that does: leave --state-dict out"
    return f"there is {listed(labels)}"
