"""Find the networks in what a checkpoint holds: dicts of tensors by name, and pickled modules.

What lies beside them (epochs, settings, the states of optimisers) is left unread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from edgeclean.errors import InputRejectedError
from edgeclean.load.pickled_layers import MOST_BITS, MOST_LAYERS, Layers, layers_of
from edgeclean.load.pickles import PickledTree, StandIn
from edgeclean.load.torch_file import in_words, is_tensor

NESTED_UNDER = ("state_dict", "model_state_dict", "model_state", "net", "netC", "model", "weights")
NETWORKS = ("model", "net")  # in a name, whatever it begins with
# How names begin under which there are tensors, yet no network.
NO_NETWORKS = (
    *("optim", "opt_", "sched", "lr_", "scaler", "amp", "rng", "callbacks", "loops", "hyper"),
    *("args", "config", "cfg", "history", "criterion", "loss", "metric"),
)
_NUMPY_NUMBERS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_NOT_FILLED = f"not a filled state dict, nor one under {', '.join(NESTED_UNDER)}"
MAX_DEPTH = 3
MOST_NETWORKS = 16
MOST_ITEMS = 64  # of a list in which networks may lie
MOST_MODULES = 100  # in one another


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundNetwork:
    """Tensors by name that may be a network.

    Attributes:
        path: the keys that it lies under; empty for the whole file.
        tensors: the nodes of its tensors, by their names.
        flaw: why it is no state dict, in a line; empty where nothing is wrong.
        layers: of a pickled module, what it says of its layers beside their weights.
        aside: of a pickled module, tensors that its state dict would not hold, by their names.
        versions: of a state dict, the version that each layer's class had, by the layer's name.
    """

    path: tuple[str, ...]
    tensors: Mapping[str, StandIn]
    flaw: str = ""
    layers: Layers = field(default_factory=dict)
    aside: Mapping[str, StandIn] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)


def find_networks(tree: PickledTree) -> list[FoundNetwork]:
    """Return every state dict and module under at most `MAX_DEPTH` keys.

    Those with the most tensors come first.

    Args:
        tree: of a `TorchFile`.

    Raises:
        InputRejectedError: there is none, or what comes closest to one holds something else than
            tensors.
    """
    root = tree.root
    found = list(_walk(tree, root, ()))
    good = [one for one in found if not one.flaw]
    if good:
        return sorted(good, key=lambda one: -len(one.tensors))[:MOST_NETWORKS]
    if found:
        raise InputRejectedError(max(found, key=lambda one: len(one.tensors)).flaw)
    nearest = _nearest(root)
    entries = _entries(nearest)
    if entries:
        raise InputRejectedError(_flaw(entries))
    raise InputRejectedError(f"the checkpoint is of type {in_words(nearest)}, {_NOT_FILLED}")


def check_plain(tensors: Mapping[str, object]) -> None:
    """Refuse what is no filled table of names, as `find_networks` does.

    Raises:
        InputRejectedError: it is empty, or a key is no name.
    """
    if not tensors:
        raise InputRejectedError(f"the checkpoint is of type {in_words(tensors)}, {_NOT_FILLED}")
    for name in tensors:
        if not is_name(name):
            raise InputRejectedError(_bad_name(name))


def is_name(key: object) -> bool:
    """Return whether a tensor may be called so: a text of at most 500 printable characters."""
    return isinstance(key, str) and 0 < len(key) <= 500 and key.isprintable()


def _walk(tree: PickledTree, node: object, path: tuple[str, ...]) -> Iterator[FoundNetwork]:
    if _is_module(node):
        tensors = dict(_of_module(node, "", 0))
        if tensors:
            layers, aside = layers_of(_modules_of(node, "")), dict(_aside(node))
            yield FoundNetwork(path=path, tensors=tensors, layers=layers, aside=aside)
        return
    entries = _entries(node)
    tensors = {
        name: leaf for name, leaf in entries.items() if isinstance(name, str) and is_tensor(leaf)
    }
    if tensors:
        versions = _versions(tree.states.get(id(node)))
        yield FoundNetwork(path=path, tensors=tensors, flaw=_flaw(entries), versions=versions)
    if len(path) == MAX_DEPTH:
        return
    for name, below in entries.items():
        if isinstance(name, str) and not _holds_no_network(name.lower()):
            yield from _walk(tree, below, (*path, name))


def _versions(kept: Any) -> dict[str, int]:
    """Return the version of each layer's class, as ``state_dict`` notes it beside the tensors."""
    state = kept[1] if kept is not None else None
    metadata = _a_dict(_a_dict(state).get("_metadata"))
    return {
        name: said["version"]
        for name, said in islice(metadata.items(), MOST_LAYERS)
        if (name == "" or is_name(name))
        and type(_a_dict(said).get("version")) is int
        and said["version"].bit_length() <= MOST_BITS
    }


def _holds_no_network(name: str) -> bool:
    return name.startswith(NO_NETWORKS) and not any(word in name for word in NETWORKS)


def _entries(node: object) -> Mapping[Any, Any]:
    """Return what lies under keys: of a dict, a list, or an object that is one or has a state."""
    if isinstance(node, dict):
        return node
    if isinstance(node, list | tuple):
        return {str(place): item for place, item in enumerate(node[:MOST_ITEMS]) if _holds(item)}
    if isinstance(node, StandIn) and not is_tensor(node):
        return node.entries or (node.state if isinstance(node.state, dict) else {})
    return {}


def _holds(item: object) -> bool:
    return isinstance(item, dict) or _is_module(item)


def _flaw(entries: Mapping[Any, Any]) -> str:
    """Return why these are no state dict, in a line; nothing if they are.

    Plain values among the tensors, such as the epoch, are left unread, as those beside them are.
    """
    tensors = any(is_tensor(leaf) for leaf in entries.values())
    for name, leaf in entries.items():
        if tensors and _is_plain(leaf):
            continue
        if not is_name(name):
            return _bad_name(name)
        if is_tensor(leaf):
            continue
        words = in_words(leaf)[:100]
        if "qint" in words or "_packed_params" in name:
            return (
                f"the state dict's {name!r} is of a quantised network, whose weights are no "
                "floats; give the float network that it was made of, or ONNX with QuantizeLinear"
            )
        if isinstance(leaf, StandIn):
            return (
                f"the state dict's {name!r} asks for code: {words}; nothing was run. Only tensors "
                "are read in a state dict: ask for torch.save(model.state_dict(), ...) or "
                "safetensors"
            )
        return f"the state dict's {name!r} is a {words}; only tensors are allowed"
    return ""


def _is_plain(leaf: object) -> bool:
    if isinstance(leaf, StandIn):
        return leaf.kind in _NUMPY_NUMBERS
    return leaf is None or isinstance(leaf, bool | int | float | str | bytes | list | tuple | dict)


def _bad_name(key: object) -> str:
    plain = isinstance(key, str | int | float | bytes) or key is None
    shown = str(key)[:60] if plain else in_words(key)
    return f"the state dict has a key {shown!r}, which is no name"


def _nearest(root: object) -> object:
    """Return what lies where a state dict usually does."""
    for _ in range(MAX_DEPTH):
        inner = [
            root[name]
            for name in NESTED_UNDER
            if isinstance(root, dict) and isinstance(root.get(name), dict | StandIn)
        ]
        if not inner:
            break
        root = inner[0]
    return root


def _is_module(node: object) -> bool:
    """Return whether it is a pickled `torch.nn.Module`, whatever class it says."""
    return (
        isinstance(node, StandIn)
        and isinstance(node.state, dict)
        and isinstance(node.state.get("_parameters"), dict)
        and isinstance(node.state.get("_modules"), dict)
    )


def _of_module(node: Any, prefix: str, depth: int) -> Iterator[tuple[str, StandIn]]:
    """Yield the tensors that the module's ``state_dict()`` would hold, by their names there.

    Raises:
        InputRejectedError: modules lie in one another without an end.
    """
    if depth > MOST_MODULES:
        raise InputRejectedError(f"the network's modules are nested deeper than {MOST_MODULES}")
    own = {**node.state["_parameters"], **_a_dict(node.state.get("_buffers"))}
    left_out = _left_out(node)
    for name, leaf in own.items():
        if isinstance(name, str) and name not in left_out and is_tensor(leaf):
            yield prefix + name, leaf
    for name, below in node.state["_modules"].items():
        if isinstance(name, str) and _is_module(below):
            yield from _of_module(below, f"{prefix}{name}.", depth + 1)


def _left_out(node: Any) -> set[str]:
    """Return the names of a module's buffers that its ``state_dict()`` leaves out."""
    passing = node.state.get("_non_persistent_buffers_set")
    if not isinstance(passing, StandIn):
        return set()
    # A set, as one protocol or another writes it.
    items = [*passing.items, *(item for one in passing.arguments for item in one)]
    return {item for item in items if isinstance(item, str)}


def _aside(node: Any) -> Iterator[tuple[str, StandIn]]:
    """Yield the tensors of a module that its ``state_dict()`` would leave out, by their names."""
    for place, one in _modules_of(node, ""):
        left_out, buffers = _left_out(one), _a_dict(one.state.get("_buffers"))
        for name, leaf in {**one.state, **{key: buffers.get(key) for key in left_out}}.items():
            if is_name(name) and is_tensor(leaf):
                yield f"{place}.{name}" if place else name, leaf


def _modules_of(node: Any, name: str) -> Iterator[tuple[str, StandIn]]:
    """Yield a module and those in it, by their names; `_of_module` has refused endless ones."""
    yield name, node
    for own, below in node.state["_modules"].items():
        if isinstance(own, str) and _is_module(below):
            yield from _modules_of(below, f"{name}.{own}" if name else own)


def _a_dict(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}
