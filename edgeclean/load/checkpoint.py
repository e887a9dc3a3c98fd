"""Trust boundary 1: load an untrusted file as a network, executing nothing of the file.

A file is read once, its bytes are hashed and checked (``limits``); a pickle or an ONNX graph
is parsed in a process of its own (``isolation``). Plain tensors are fitted by name and shape to an
architecture whose code we or the user brought (``fitting``); a checked graph becomes stock layers
(``onnx.importer``).

``torch.load`` and Python's unpickler are called nowhere: what a pickle holds is read as data
(``pickles``, ``torch_file``), so that nothing in it can be code.
"""

from __future__ import annotations

import hashlib
import json
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeclean.child.parcel import Parcel, untrusted_answer
from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.files.text import first_line, printable
from edgeclean.load.asked_for import MOST_NAMES, beside_tensors
from edgeclean.load.canonical.answers import way_out
from edgeclean.load.canonical.form import as_stock_layers, stock_form
from edgeclean.load.finite import check_answers
from edgeclean.load.fitting import SavedNetworks, fitted
from edgeclean.load.hub_folder import hint_of_part, weights_of
from edgeclean.load.isolation import limits_of, parse_isolated
from edgeclean.load.kinds import Kind, kind_of
from edgeclean.load.limits import (
    ZIP_MAGIC,
    LoadLimits,
    check_safetensors,
    check_zip,
    read_input,
)
from edgeclean.load.model_file import MAX_CLASSES, check_spec
from edgeclean.load.networks_in_file import FoundNetwork, check_plain, find_networks
from edgeclean.load.running_cost import bounded_cost
from edgeclean.load.state_dict import check_count, check_layout
from edgeclean.load.torch_file import TorchFile
from edgeclean.networks.state import JsonValue, LoadedNetwork, ModelSpec, record
from edgeclean.networks.structure import read_structure

__all__ = ["LoadLimits", "load_checkpoint", "parse_torch", "read_networks", "written_out"]

ONNX = "onnx"
_ASIDE = "+"  # before the number of a network, of tensors that its state dict would not hold
_DEFAULT_LIMITS = LoadLimits()


def load_checkpoint(
    path: Path,
    spec: ModelSpec,
    *,
    limits: LoadLimits = _DEFAULT_LIMITS,
    code_folder: Path | None = None,
) -> LoadedNetwork:
    """Load a state dict (PyTorch or safetensors) or an ONNX file.

    Args:
        path: a file of ``torch.save``, whatever lies beside its weights, of safetensors, or of
            ONNX; its bytes say which, not its name. Or a folder with such a file (`hub_folder`).
        spec: the architecture, input shape, classes and scaling, which no checkpoint holds. An
            ONNX file needs the architecture ``onnx``, or ``onnx:NAME`` to name one of its outputs.
        limits: the most that the file may cost.
        code_folder: the folder that ``file.py:callable`` in the spec's architecture is relative to.

    Returns:
        The network in evaluation mode with float32 weights and one stage record, "load".

    Raises:
        InputRejectedError: the file cannot be accepted; nothing of it was executed.
        UsageError: a value of the spec is impossible, the architecture is unknown, or the user's
            own code for it failed.
    """
    path = weights_of(path)
    if spec.classes > MAX_CLASSES:  # which an ONNX file says itself, or a caller from Python
        raise InputRejectedError(
            printable(f"{path}: {spec.classes} classes; at most {MAX_CLASSES} are taken")
        )
    check_spec(spec)
    contents = read_input(path, limits.file_bytes)
    kind = kind_of(path, contents)
    try:
        module, notes = _network(path.parent, contents, kind, spec, limits, code_folder)
        dear = _check_signature(module, spec, limits)
        form = stock_form(module, spec, limits)
        check_answers(form.module, spec, few=dear)
        structure = read_structure(form.module, spec.input_shape)
        if structure.read:
            notes["structure"] = [one.in_words() for one in structure.findings]
    except InputRejectedError as error:
        # Names in the message come from the file: none of them may control a terminal.
        line = printable(f"{path}: {error}{hint_of_part(path)}")
        raise InputRejectedError(line) from error.__cause__
    module, notes = form.module, {**notes, **form.notes}
    return LoadedNetwork(
        module=module,
        spec=spec,
        source_sha256=hashlib.sha256(contents).hexdigest(),
        history=(record("load", module, spec, limits, notes),),
    )


def written_out(network: LoadedNetwork, limits: LoadLimits, why: str) -> LoadedNetwork:
    """Return a loaded network as stock layers called in order: another form of the same function.

    Args:
        network: as `load_checkpoint` returned it, on the CPU.
        limits: bounds what is written out.
        why: the reason for it, for the history.

    Raises:
        InputRejectedError: it cannot be written out; names the layer.
    """
    module = as_stock_layers(network.module, network.spec, limits)
    notes = {**network.history[0].notes, "written_out": why}
    loaded = record("load", module, network.spec, limits, notes)
    return replace(network, module=module, history=(loaded,))


def torch_task(given: Parcel) -> Parcel:
    """Do as `parse_torch`; runs in a child process."""
    return Parcel(files={"parsed": parse_torch(given.files["file"], limits_of(given))})


def parse_torch(contents: bytes, limits: LoadLimits) -> bytes:
    """Parse a file of ``torch.save`` into plain tensors.

    Returns:
        A safetensors file. Its metadata has, as JSON under "networks", the keys that each network
        lies under, and under "beside" what the pickle asks for beside tensors. The names of the
        first network's tensors begin with "0:", and so on; with "+0:" what a module would leave
        out of its state dict.

    Raises:
        InputRejectedError: the archive or pickle is damaged, asks for code, holds no network, or
            its tensors break a rule of ``state_dict``.
    """
    if contents.startswith(ZIP_MAGIC):
        check_zip(contents, limits)
    try:
        file = TorchFile(contents)
        found = find_networks(file.tree)
        check_count([name for one in found for name in (*one.tensors, *one.aside)], limits)
        networks = [_read(file, one, limits) for one in found]
        aside = [_read_aside(file, one, limits) for one in found]
    except (MemoryError, InputRejectedError):
        raise
    except Exception as error:  # noqa: BLE001 - hostile bytes raise whatever they can
        reason = first_line(error)
        raise InputRejectedError(
            f"damaged, cut short, or not a checkpoint ({type(error).__name__}: {reason})"
        ) from None
    _check_total(networks, aside, limits)
    # A copy each: safetensors takes neither shared nor transposed storages.
    plain = {
        f"{kind}{index}:{name}": tensor.clone(memory_format=torch.contiguous_format)
        for kind, read in (("", networks), (_ASIDE, aside))
        for index, tensors in enumerate(read)
        for name, tensor in tensors.items()
    }
    beside = beside_tensors(file.tree.names)[:MOST_NAMES]
    told = {
        "networks": [one.path for one in found],
        "beside": beside,
        "layers": [one.layers for one in found],
        "versions": [one.versions for one in found],
    }
    return safetensors.torch.save(plain, {key: json.dumps(one) for key, one in told.items()})


def read_networks(contents: bytes, kind: Kind, limits: LoadLimits) -> SavedNetworks:
    """Read the checked tensors in a file's bytes.

    Raises:
        InputRejectedError: the bytes are not of the format ``kind``, or break a rule.
    """
    if kind == "safetensors":
        check_safetensors(contents, limits)
        tensors = _safetensors(contents)
        check_plain(tensors)
        check_layout(tensors, limits)
        return SavedNetworks(networks={(): tensors}, beside=())
    answer = parse_isolated(torch_task, Parcel(files={"file": contents}), limits)
    return networks_told(answer.files.get("parsed", b""), limits)


def networks_told(parsed: bytes, limits: LoadLimits) -> SavedNetworks:
    """Return the networks in the answer of `parse_torch`, which may be anything.

    Raises:
        InputRejectedError: the answer is not of its form, or breaks a rule.
    """
    with untrusted_answer(InputRejectedError("the parsing process answered nonsense")):
        return _told(parsed, limits)


def _told(parsed: bytes, limits: LoadLimits) -> SavedNetworks:
    (length,) = struct.unpack("<Q", parsed[:8])
    told = json.loads(parsed[8 : 8 + length])["__metadata__"]
    networks: dict[tuple[str, ...], dict[str, Tensor]] = {
        tuple(path): {} for path in json.loads(told["networks"])
    }
    by_index = list(networks.values())
    aside: dict[tuple[str, ...], dict[str, Tensor]] = {path: {} for path in networks}
    aside_by_index = list(aside.values())
    for name, tensor in _safetensors(parsed).items():
        index, _, own = name.partition(":")
        into = aside_by_index if index.startswith(_ASIDE) else by_index
        into[int(index.removeprefix(_ASIDE))][own] = tensor
    for tensors in by_index:
        check_layout(tensors, limits)
    layers = dict(zip(networks, json.loads(told["layers"]), strict=True))
    versions = dict(zip(networks, json.loads(told["versions"]), strict=True))
    beside = tuple(json.loads(told["beside"]))
    return SavedNetworks(
        networks=networks, beside=beside, layers=layers, versions=versions, aside=aside
    )


def _safetensors(contents: bytes) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(contents)
    # The parser is Rust: besides its own error it raises what its Python glue does.
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = first_line(error)
        raise InputRejectedError(f"not a valid safetensors file ({reason})") from None
    return tensors


def _read(file: TorchFile, found: FoundNetwork, limits: LoadLimits) -> dict[str, Tensor]:
    check_count(found.tensors, limits)
    tensors = {name: file.tensor(node, name) for name, node in found.tensors.items()}
    check_layout(tensors, limits)
    return tensors


def _read_aside(file: TorchFile, found: FoundNetwork, limits: LoadLimits) -> dict[str, Tensor]:
    """Return what can be compared with the code's; no network needs the others."""
    read: dict[str, Tensor] = {}
    for name, node in found.aside.items():
        with suppress(InputRejectedError):
            tensor = file.tensor(node, name)
            check_layout({name: tensor}, limits)
            read[name] = tensor
    return read


def _check_total(
    networks: list[dict[str, Tensor]], aside: list[dict[str, Tensor]], limits: LoadLimits
) -> None:
    """Refuse networks that together take more than one may: each was looked at alone."""
    read = (*networks, *aside)
    total = sum(tensor.nbytes for tensors in read for tensor in tensors.values())
    if total > limits.file_bytes:
        raise InputRejectedError(
            f"the tensors of {len(networks)} networks take {total} bytes; the limit file_bytes is "
            f"{limits.file_bytes}"
        )


def _network(
    folder: Path,
    contents: bytes,
    kind: Kind,
    spec: ModelSpec,
    limits: LoadLimits,
    code_folder: Path | None,
) -> tuple[nn.Module, dict[str, JsonValue]]:
    """Build the module; return it with the notes of the stage record."""
    name, _, output = spec.architecture.partition(":")
    if (kind == "onnx") != (name == ONNX):
        raise InputRejectedError(
            f"the architecture is {spec.architecture!r}; it must be 'onnx' for an ONNX file, and "
            "for no other"
        )
    if kind != "onnx":
        saved = read_networks(contents, kind, limits)
        try:
            module, notes = fitted(saved, spec, limits, code_folder)
        except InputRejectedError:
            if spec.classes != 2:
                raise
            single = replace(spec, classes=1)  # one logit may stand for two classes
            with suppress(InputRejectedError, UsageError):
                module, notes = fitted(saved, single, limits, code_folder)
                return module, {"format": kind, **notes}
            raise
        return module, {"format": kind, **notes}
    # ONNX's own packages are slow to import, and the parsing process of a state dict, which
    # imports this module, needs none of them.
    from edgeclean.load.onnx.asked import Asked
    from edgeclean.load.onnx.importer import import_onnx

    asked = Asked(input_shape=spec.input_shape, classes=spec.classes, output=output or None)
    imported = import_onnx(
        contents, limits, folder=folder, asked=asked, mean=spec.mean, std=spec.std
    )
    notes = {"format": kind}
    notes["external_sha256"] = dict(imported.external_sha256)
    notes["onnx_changes"] = list(imported.notes)
    notes["onnx_comparison"] = dict(imported.comparison)
    return imported.module, notes


def _check_signature(module: nn.Module, spec: ModelSpec, limits: LoadLimits) -> bool:
    """Run one black image through: the network must take the spec's shape, within the limits.

    Returns:
        Whether it is so dear that few images should be tried.
    """
    shape = "x".join(str(side) for side in spec.input_shape)
    if not any(True for _ in module.parameters()):
        raise InputRejectedError("the network has no parameters; there is nothing to compress")
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and layer.running_var is None:
            raise InputRejectedError(
                f"BatchNorm {name!r} keeps no statistics, so that the answer for an image hangs on "
                "the others of its batch; train with track_running_stats=True"
            )
    try:
        with torch.no_grad(), bounded_cost(module, spec.input_shape, limits) as bill:
            module(torch.zeros(1, *spec.input_shape))
    except (InputRejectedError, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - code that does not fit raises any
        reason = first_line(error)
        raise InputRejectedError(
            f"the network does not take an image of {shape} ({type(error).__name__}: {reason}); "
            f"{way_out(module)}"
        ) from None
    return bill.is_dear
