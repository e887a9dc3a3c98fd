"""Put the weights of a checkpoint into the architecture that was named for them.

A checkpoint may hold several networks (a student and its teacher, an average beside the last
weights), each under names of the tool that wrote it. The rule is one: exactly one of them must fit
the architecture, or the user says which.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.load.architectures import build_architecture, list_architectures
from edgeclean.load.architectures.libraries import is_of_library
from edgeclean.load.asked_for import MOST_LETTERS
from edgeclean.load.limits import LoadLimits
from edgeclean.load.names import Architecture, Renamed, closest, fits, unwrapped
from edgeclean.load.pickled_layers import Layers, differences
from edgeclean.load.running_cost import bounded_cost
from edgeclean.load.state_dict import check_names_and_shapes, fit_weights
from edgeclean.networks.layers import evaluated
from edgeclean.networks.state import JsonValue, ModelSpec

_Networks = Mapping[tuple[str, ...], Mapping[str, Tensor]]
WHOLE_FILE = "."
MOST_SHOWN = 8
_ANOTHER_SEED = 2**31 - 19


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedNetworks:
    """What was read of a file.

    Attributes:
        networks: tensors by name, under the keys that they lie under in the file.
        beside: what else a pickle asks for, unread.
        layers: what pickled modules say of their layers, under the same keys.
    """

    networks: _Networks
    beside: tuple[str, ...] = ()
    layers: Mapping[tuple[str, ...], Layers] = field(default_factory=dict)


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
    if spec.architecture in list_architectures():
        # Without memory: a million classes that the file does not have would take gigabytes.
        with torch.device("meta"):
            way = _chosen(saved, _by_keys(spec), limits.state_dict)
        module = _built(spec, way.renamed.tensors, code_folder)
    else:
        if is_of_library(spec.architecture):
            _check_foreseen(saved, spec, limits)
        module = _built(spec, (), code_folder)
        _wake_(module, spec, limits)
        needed = module.state_dict()
        way = _chosen(saved, lambda _: needed, limits.state_dict)
        _refuse_drawn(module, lambda: _built(spec, (), code_folder))
    fit_weights(module, way.renamed.tensors)
    notes = {
        "differences": list(differences(_renamed_layers(saved, way), module)),
        "network": way.label if way.label != WHOLE_FILE else "",
        "names": list(way.renamed.done),
        "beside": [name[:MOST_LETTERS] for name in saved.beside],
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
    return evaluated(module.float())


def _renamed_layers(saved: SavedNetworks, way: _Way) -> Layers:
    """Return what the file says of the layers, under the names that the architecture has."""
    prefix = way.renamed.prefix
    return {
        unwrapped(f"{name}.".removeprefix(prefix))[:-1]: said
        for name, said in saved.layers.get(way.path, {}).items()
        if f"{name}.".startswith(prefix)
    }


def _refuse_drawn(module: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Refuse numbers that the code draws at random and that no state dict holds.

    Raises:
        InputRejectedError: made once more, the network has others.
    """
    unsaved = _unsaved(module)
    if not unsaved:
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_ANOTHER_SEED)
        again = _unsaved(build())
    for name, tensor in unsaved.items():
        if name in again and not torch.equal(again[name], tensor):
            raise InputRejectedError(
                f"{name} is drawn at random when the network is made, and its state dict does not "
                "hold it, so that the network that was trained cannot be made again; register it "
                "as a buffer that is saved, or export the network to ONNX and give that file"
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
            if one is not None and one.layout is torch.strided and name not in made:
                found[f"{place}.{name}" if place else name] = one
    return {name: one for name, one in found.items() if _address(one) not in saved}


def _address(tensor: Tensor) -> int:
    """Return where the numbers lie; 0 for a tensor that has them in no one place."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


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
        reason = (str(error).splitlines() or [""])[0][:200]
        raise InputRejectedError(
            f"the network's lazy layers get no shape from an image of {shape} "
            f"({type(error).__name__}: {reason}); give its input shape"
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
            f"the checkpoint holds {len(labels)} networks that fit, under {_listed(labels)}; "
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
        f"the checkpoint holds {len(labels)} networks, under {_listed(labels)}, and none fits; of "
        f"{near}: {reason}"
    )


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _label(path: tuple[str, ...], prefix: str) -> str:
    return "/".join((*path, *([prefix[:-1]] if prefix else []))) or WHOLE_FILE


def _offered(labels: list[str]) -> str:
    if labels == [WHOLE_FILE]:
        return "the file itself is the one that does: leave --state-dict out"
    return f"there is {_listed(labels)}"


def _listed(labels: list[str]) -> str:
    more = f" and {len(labels) - MOST_SHOWN} more" if len(labels) > MOST_SHOWN else ""
    return ", ".join(labels[:MOST_SHOWN]) + more
