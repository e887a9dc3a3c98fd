"""Run a bundle's network on its golden images in a process that may die without harm.

The ONNX checker and the runtime are native code, and a bundle is a stranger's file like any other,
so neither reads it in the process that decides (see ``edgeclean.load.isolation``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclean.child.parcel import Parcel, untrusted_answer
from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line
from edgeclean.load.isolation import parse_isolated
from edgeclean.load.limits import LoadLimits

_DEFAULT_LIMITS = LoadLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRun:
    """The network's metadata and its logits.

    Attributes:
        graph: what `onnx_check.graph_facts` says of it.
        source_sha256: SHA-256 of the checkpoint that its metadata names, or "".
        logits: [n, classes] float32.
    """

    graph: Mapping[str, object]
    source_sha256: str
    logits: NDArray[np.float32]


def run_isolated(
    model: bytes, images: NDArray[np.float32], limits: LoadLimits = _DEFAULT_LIMITS
) -> GoldenRun:
    """Check an ONNX file and run it on normalised images [n, c, h, w].

    Raises:
        InputRejectedError: the file is not plain ONNX, does not take these images, or took its
            process over a limit.
    """
    return golden_run(parse_isolated(run_golden, asked(model, images), limits))


def asked(model: bytes, images: NDArray[np.float32]) -> Parcel:
    """Return what `run_golden` is given."""
    files = {"model": model, "images": images.tobytes()}
    return Parcel(facts={"shape": list(images.shape)}, files=files)


def golden_run(answer: Parcel) -> GoldenRun:
    """Read what the process that ran `run_golden` answered.

    Raises:
        InputRejectedError: it is not of its form; whoever took it over may answer anything.
    """
    with untrusted_answer(InputRejectedError("the process that ran the network answered nonsense")):
        facts = answer.facts
        logits = np.frombuffer(answer.files["logits"], np.float32).reshape(facts["shape"])
        graph, source_sha256 = dict(facts["graph"]), str(facts["source_sha256"])
    return GoldenRun(graph=graph, source_sha256=source_sha256, logits=logits)


def run_golden(given: Parcel) -> Parcel:
    """Run the network and the images of `asked`; its child process calls this.

    Raises:
        InputRejectedError: the file is not plain ONNX, or does not take these images.
    """
    from exporters.onnx_check import graph_facts, open_onnx
    from exporters.session import OnnxSession

    model, shape = given.files["model"], given.facts["shape"]
    images = np.frombuffer(given.files["images"], np.float32).reshape(shape)
    proto = open_onnx(model)
    session = OnnxSession(model)
    if session.input_shape != tuple(shape[1:]):
        raise InputRejectedError(
            f"the network takes images {session.input_shape}; the manifest says {tuple(shape[1:])}"
        )
    try:
        logits = session.predict(images)
    except (MemoryError, InputRejectedError):
        raise
    except Exception as error:  # noqa: BLE001 - the runtime's exceptions share no public base
        line = first_line(error)
        raise InputRejectedError(f"ONNX Runtime cannot run the network: {line}") from None
    if logits.dtype != np.float32 or len(logits) != len(images):
        raise InputRejectedError(
            f"the network gives {logits.dtype} {logits.shape}; float32 rows, one for each of "
            f"{len(images)} images, are needed"
        )
    facts = {fact.key: fact.value for fact in proto.metadata_props}
    told = {
        "graph": graph_facts(proto),
        "source_sha256": facts.get("edgeclean.source_sha256", ""),
        "shape": list(logits.shape),
    }
    return Parcel(facts=told, files={"logits": logits.tobytes()})
