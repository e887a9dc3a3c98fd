"""Trust boundary 1: load an untrusted file as a network, executing nothing of the file.

A file is read once, its bytes are hashed and checked (``limits``); a pickle or an ONNX graph
is parsed in a process of its own (``isolation``). Plain tensors are fitted by name and shape to an
architecture whose code we or the user brought (``architectures``, ``state_dict``); a checked graph
becomes stock layers (``onnx.importer``).

``torch.load`` is called here and nowhere else, always with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import io
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.serialization import get_unsafe_globals_in_checkpoint

from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.files.text import printable
from edgeclean.load.architectures import build_architecture, list_architectures
from edgeclean.load.canonical.form import as_stock_layers, stock_form
from edgeclean.load.finite import check_answers
from edgeclean.load.isolation import parse_isolated
from edgeclean.load.limits import (
    ZIP_MAGIC,
    Kind,
    LoadLimits,
    check_safetensors,
    check_zip,
    kind_of,
    read_input,
)
from edgeclean.load.running_cost import bounded_cost
from edgeclean.load.state_dict import (
    check_layout,
    check_names_and_shapes,
    find_state_dict,
    fit_weights,
    strip_prefix,
)
from edgeclean.networks.state import JsonValue, LoadedNetwork, ModelSpec, record
from edgeclean.networks.structure import read_structure

__all__ = ["LoadLimits", "load_checkpoint", "parse_torch", "read_tensors", "written_out"]

ONNX = "onnx"
_DEFAULT_LIMITS = LoadLimits()
_UNSUPPORTED_GLOBAL = re.compile(r"GLOBAL (\S+)")


def load_checkpoint(
    path: Path,
    spec: ModelSpec,
    *,
    limits: LoadLimits = _DEFAULT_LIMITS,
    code_folder: Path | None = None,
) -> LoadedNetwork:
    """Load a state dict (PyTorch or safetensors) or an ONNX file.

    Args:
        path: ``.pt .pth .th .tar .bin .ckpt`` (``torch.save`` of a state dict, alone or under one
            of ``state_dict.NESTED_UNDER``), ``.safetensors`` or ``.onnx``.
        spec: the architecture, input shape, classes and scaling, which no checkpoint holds. An
            ONNX file needs the architecture ``onnx``, or ``onnx:NAME`` to name one of its outputs.
        limits: the most that the file may cost.
        code_folder: the folder that ``file.py:callable`` in the spec's architecture is relative to.

    Returns:
        The network in evaluation mode with float32 weights and one stage record, "load".

    Raises:
        InputRejectedError: the file cannot be accepted; nothing of it was executed.
        UsageError: the architecture is unknown, or the user's own code for it failed.
    """
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
        raise InputRejectedError(printable(f"{path}: {error}")) from error.__cause__
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


def parse_torch(contents: bytes, limits: LoadLimits) -> bytes:
    """Parse a file of ``torch.save`` into a safetensors file; pure, runs in a child process.

    Raises:
        InputRejectedError: the archive or pickle is damaged, asks for anything but tensors and
            plain containers, or its tensors break a rule of ``state_dict``.
    """
    zipped = contents.startswith(ZIP_MAGIC)
    if zipped:
        check_zip(contents, limits)
    try:
        tree = torch.load(io.BytesIO(contents), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - hostile bytes raise whatever they can
        raise InputRejectedError(_load_failure(error, contents)) from None
    tensors = find_state_dict(tree)
    check_layout(tensors, limits)
    # A copy each: safetensors takes neither shared nor transposed storages.
    plain = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    return safetensors.torch.save(plain)


def read_tensors(contents: bytes, kind: Kind, limits: LoadLimits) -> dict[str, Tensor]:
    """Read the checked state dict in a file's bytes, without a common prefix of its names.

    Raises:
        InputRejectedError: the bytes are not of the format ``kind``, or break a rule.
    """
    if kind == "safetensors":
        check_safetensors(contents, limits)
    else:
        contents = parse_isolated(parse_torch, contents, limits)
    try:
        tree = safetensors.torch.load(contents)
    # The parser is Rust: besides its own error it raises what its Python glue does.
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise InputRejectedError(f"not a valid safetensors file ({reason})") from None
    tensors = find_state_dict(tree)
    check_layout(tensors, limits)
    return strip_prefix(tensors)


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
        tensors = read_tensors(contents, kind, limits)
        try:
            return _fitted(tensors, spec, code_folder), {"format": kind}
        except InputRejectedError:
            if spec.classes != 2:
                raise
            single = replace(spec, classes=1)  # one logit may stand for two classes
            with suppress(InputRejectedError, UsageError):
                return _fitted(tensors, single, code_folder), {"format": kind}
            raise
    # ONNX's own packages are slow to import, and the parsing process of a state dict, which
    # imports this module, needs none of them.
    from edgeclean.load.onnx.asked import Asked
    from edgeclean.load.onnx.importer import import_onnx

    asked = Asked(input_shape=spec.input_shape, classes=spec.classes, output=output or None)
    imported = import_onnx(
        contents, limits, folder=folder, asked=asked, mean=spec.mean, std=spec.std
    )
    notes: dict[str, JsonValue] = {"format": kind}
    notes["external_sha256"] = dict(imported.external_sha256)
    notes["onnx_changes"] = list(imported.notes)
    notes["onnx_comparison"] = dict(imported.comparison)
    return imported.module, notes


def _fitted(tensors: dict[str, Tensor], spec: ModelSpec, code_folder: Path | None) -> nn.Module:
    if spec.architecture in list_architectures():
        # First without memory: a million classes that the file does not have would take gigabytes.
        with torch.device("meta"):
            empty = build_architecture(spec.architecture, spec, tensors)
        check_names_and_shapes(empty, tensors)
    # Every weight is replaced, so how they are drawn does not matter, but the caller's random
    # numbers must not move.
    with torch.random.fork_rng(devices=[]):
        module = build_architecture(spec.architecture, spec, tensors, code_folder=code_folder)
    module = module.float().eval()
    fit_weights(module, tensors)
    return module


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
    except InputRejectedError:
        raise
    except Exception as error:  # noqa: BLE001 - a module that does not fit raises what it likes
        reason = (str(error).splitlines() or [""])[0][:200]
        raise InputRejectedError(
            f"the network does not take an image of {shape} ({type(error).__name__}: {reason}); "
            "give its input shape"
        ) from None
    return bill.is_dear


def _load_failure(error: Exception, contents: bytes) -> str:
    names = _globals_asked_for(error, contents)
    if names:
        shown = ", ".join(name[:100] for name in names[:8])
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        return (
            f"its pickle asks for code: {shown}{more}; nothing was run. Only tensors in plain "
            "dicts are read: ask for torch.save(model.state_dict(), ...) or safetensors"
        )
    reason = (str(error).splitlines() or [""])[0][:200]
    return f"damaged, cut short, or not a checkpoint ({type(error).__name__}: {reason})"


def _globals_asked_for(error: Exception, contents: bytes) -> list[str]:
    """List what a pickle would import, beyond the few names that ``weights_only`` allows."""
    if contents.startswith(ZIP_MAGIC):
        try:
            return sorted(get_unsafe_globals_in_checkpoint(io.BytesIO(contents)))
        except Exception:  # noqa: BLE001 - as above: then the message below has to do
            return _UNSUPPORTED_GLOBAL.findall(str(error))
    return _UNSUPPORTED_GLOBAL.findall(str(error))[:1]
