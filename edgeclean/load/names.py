"""Undo what training tools add to the names of a state dict, where the rest then fits exactly.

DataParallel, torch.compile, Lightning and averaged copies put something before the names; pruning,
weight and spectral normalisation keep a weight in parts (`weight_parts`); counters of operations
leave numbers of their own. A network is taken only if every name of the architecture is found, with
its shape, and nothing under the same prefix is left over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from edgeclean.files.text import listed
from edgeclean.load.weight_parts import put_together, whole_names

# Parts of names that wrappers of a module add: DataParallel's and DDP's, torch.compile's, FSDP's,
# activation checkpointing's, DeepSpeed's.
WRAPPERS = (
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    "_forward_module",
)
# Last parts of names of what no network computes with: counters of thop and of averaging.
COUNTERS = ("total_ops", "total_params", "n_averaged")
TRACKED = "num_batches_tracked"
# Parts of names of torch.ao.quantization's observers and fake quantisers.
OBSERVERS = ("activation_post_process", "weight_fake_quant")
MOST_PREFIXES = 24
LEAST_SHARE = 8  # a network is at least an eighth of the names that it lies among
MOST_DEPTH = 4  # of a prefix, in parts

# The state dict of the architecture, whose naming variant these names choose.
Architecture = Callable[[Collection[str]], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed:
    """Tensors under the names of an architecture, or under those that come closest to them.

    Attributes:
        tensors: the network's, by their names.
        prefix: what stood before each name; empty for nothing.
        done: what was undone, a line each.
    """

    tensors: Mapping[str, Tensor]
    prefix: str = ""
    done: tuple[str, ...] = ()


def fits(tensors: Mapping[str, Tensor], architecture: Architecture) -> list[Renamed]:
    """Return each way in which the tensors fit the architecture.

    Names that fit as they are do so in one way. Otherwise each prefix is tried, and several may
    fit: a student's and a teacher's, say.
    """
    needed = architecture(_keys(tensors))
    whole = _tidied(Renamed(tensors=tensors), needed)
    if _is_all_of(whole.tensors, needed):
        return [whole]
    found: list[Renamed] = []
    for variant in _variants(tensors):
        if any(variant.prefix.startswith(one.prefix) for one in found):
            continue  # a part of a network that fits
        match = _match(variant, architecture(_keys(variant.tensors)))
        if match is not None:
            found.append(match)
    return [*found, *_around(found, tensors, architecture)]


def _around(
    found: list[Renamed], tensors: Mapping[str, Tensor], architecture: Architecture
) -> Iterator[Renamed]:
    """Yield what fits once those that fit and lie in it are left out: a network and its average.

    The average may be a part of the module whose average it is.
    """
    inner = tuple(one.prefix for one in found if one.prefix)
    above = {""}
    for prefix in inner:
        words = prefix[:-1].split(".")
        above |= {".".join(words[:depth]) + "." for depth in range(1, len(words))}
    for prefix in sorted(above - {one.prefix for one in found}):
        rest = {name: one for name, one in tensors.items() if not name.startswith(inner)}
        variant = _below(prefix, rest)
        match = _match(variant, architecture(_keys(variant.tensors))) if variant.tensors else None
        if match is not None:
            yield match


def closest(tensors: Mapping[str, Tensor], architecture: Architecture) -> Renamed:
    """Return the variant of the names that has the most of the architecture's."""
    needed = architecture(_keys(tensors))
    best = _tidied(Renamed(tensors=tensors), needed)
    most = len(needed.keys() & best.tensors.keys())
    for variant in _variants(tensors):
        needed = architecture(_keys(variant.tensors))
        tidied = _tidied(variant, needed)
        common = len(needed.keys() & tidied.tensors.keys())
        if common > most:
            best, most = tidied, common
    return best


def _keys(tensors: Mapping[str, Tensor]) -> Collection[str]:
    return tensors.keys() | whole_names(tensors)


def _variants(tensors: Mapping[str, Tensor]) -> Iterator[Renamed]:
    """Yield the tensors without wrappers, then those under each prefix, the largest first."""
    yield _below("", tensors)
    counts: dict[str, int] = {}
    for name in tensors:
        words = name.split(".")
        for depth in range(1, min(len(words), MOST_DEPTH + 1)):
            prefix = ".".join(words[:depth]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    enough = len(tensors) / LEAST_SHARE
    large = [prefix for prefix in counts if counts[prefix] >= enough]
    for prefix in sorted(large, key=lambda one: (-counts[one], len(one)))[:MOST_PREFIXES]:
        yield _below(prefix, tensors)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> Renamed:
    """Return the tensors whose names begin with the prefix, without it and without wrappers."""
    named = {
        name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)
    }
    plain = {unwrapped(name): one for name, one in named.items()}
    if len(plain) < len(named):  # it is the wrapper that tells two names apart
        plain = named
    words = sorted({part for name in named.keys() - plain.keys() for part in _wrappers(name)})
    done = [f"{word!r} taken out of the names" for word in words]
    if prefix:
        done += [f"{prefix!r} taken from the names"]
        done += _left_out([name for name in tensors if not name.startswith(prefix)])
    return Renamed(tensors=plain, prefix=prefix, done=tuple(done))


def _match(variant: Renamed, needed: Mapping[str, Tensor]) -> Renamed | None:
    """Return the tensors under the needed names, or None where they do not fit.

    The architecture's own names may have wrappers and a prefix too; they are compared without.
    """
    names = {unwrapped(name): name for name in needed}
    if len(names) < len(needed):
        names = {name: name for name in needed}
    shared = _shared_prefix(names)
    names = {name.removeprefix(shared): full for name, full in names.items()}
    if variant.prefix and not any("." in name for name in names):
        return None  # one layer alone is found under many a prefix
    table = {name: needed[full] for name, full in names.items()}
    tidied = _tidied(variant, table)
    if not _is_all_of(tidied.tensors, table):
        return None
    tensors = {names[name]: one for name, one in tidied.tensors.items()}
    return Renamed(tensors=tensors, prefix=tidied.prefix, done=tidied.done)


def _is_all_of(tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> bool:
    missing = needed.keys() - tensors.keys()
    return (
        tensors.keys() <= needed.keys()
        and all(name.endswith(TRACKED) for name in missing)
        and all(tensors[name].shape == needed[name].shape for name in tensors)
    )


def _tidied(variant: Renamed, needed: Mapping[str, Tensor]) -> Renamed:
    """Return it without counters, and with parts of weights put together, where needed."""
    tensors, done = put_together(variant.tensors, needed)
    observers = {name for name in tensors if name not in needed and _observes(name)}
    if observers:
        tensors = {name: one for name, one in tensors.items() if name not in observers}
        done = (*done, f"{len(observers)} of quantisation's observers left out")
    tensors = {name: one for name, one in tensors.items() if not _miscounts(name, one, needed)}
    for counter in (*COUNTERS, TRACKED):
        extra = {
            name for name in tensors if name not in needed and name.rpartition(".")[2] == counter
        }
        tensors = {name: one for name, one in tensors.items() if name not in extra}
        if extra:
            done = (*done, f"{len(extra)} of {counter!r} left out")
    tied = _tied(tensors, needed)
    if tied:
        tensors, done = tensors | tied, (*done, f"{len(tied)} tied to one that was saved")
    return Renamed(tensors=tensors, prefix=variant.prefix, done=(*variant.done, *done))


def _observes(name: str) -> bool:
    """Return whether a name is of what quantisation-aware training watches a network with."""
    return any(part.startswith(OBSERVERS) for part in name.split("."))


def _miscounts(name: str, tensor: Tensor, needed: Mapping[str, Tensor]) -> bool:
    """Return whether it is a counter that averaging made a fraction of, or gave an axis."""
    return (
        name.endswith(TRACKED)
        and name in needed
        and (tensor.is_floating_point() or tensor.shape != needed[name].shape)
    )


def _tied(tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the missing tensors that the architecture ties to one that is there, filled by it.

    Tied weights are one tensor under several names, of which safetensors keeps one.
    """
    missing = [name for name in needed if name not in tensors]
    if not missing or len(missing) == len(needed):
        return {}
    saved = {_place(needed[name]): tensors[name] for name in tensors if name in needed}
    return {
        name: saved[place]
        for name in missing
        if (place := _place(needed[name])) in saved and needed[name].numel()
    }


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Return which numbers of which storage a tensor is, also where it has no memory."""
    storage = StorageWeakRef(tensor.untyped_storage()).cdata
    return storage, tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride())


def _shared_prefix(names: Collection[str]) -> str:
    """Return the first parts that all names have in common, but for the last two of any."""
    first = next(iter(names), "").split(".")
    shared = ""
    for part in first[:-2]:
        if not all(name.startswith(f"{shared}{part}.") for name in names):
            break
        shared += f"{part}."
    return shared


def unwrapped(name: str) -> str:
    """Return a name without the parts that wrappers of a module add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _wrappers(name: str) -> list[str]:
    return [part for part in name.split(".") if part in WRAPPERS]


def _left_out(names: list[str]) -> tuple[str, ...]:
    names = [name for name in names if name.rpartition(".")[2] not in COUNTERS]
    return (f"left out: {listed(names)}",) if names else ()
