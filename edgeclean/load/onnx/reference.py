"""What ONNX Runtime answers for an untrusted ONNX file, to compare its import with.

Runs in a process of its own (``isolation``), after the file has passed the guard: only known
operators, of a counted cost. The graph is run as it came, with no optimisation, by one thread; and
once more as it was lifted, where the file's own answers are rounded, or cannot be computed here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, helper

from edgeclean.child.parcel import Parcel, untrusted_answer
from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line
from edgeclean.load.isolation import limits_of
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx.asked import FILE, Asked, question_of, with_question
from edgeclean.load.onnx.branches import take_branches_
from edgeclean.load.onnx.functions import without_attention, without_functions
from edgeclean.load.onnx.graph import read_model, reduce_, shape_of
from edgeclean.load.onnx.lift import Lifted, lifted, set_input

Images = np.ndarray[Any, np.dtype[Any]]
PARTS = "file", "lifted", "together"
TOGETHER = 4  # images of a batch: more would need more memory than one image was counted to


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What ONNX Runtime answers for a few images, [n, outputs] in float32.

    Attributes:
        file: the answers of the graph as it came; None where it cannot be run here.
        lifted: those of the graph as it was lifted; None where that rounds nothing else.
        together: those of the graph for the first images at once; None where it takes a fixed
            number.
        rounded: what the file rounds to, or "".
    """

    file: Images | None
    lifted: Images | None
    together: Images | None
    rounded: str


def with_images(asked: Asked, contents: bytes, images: Images) -> Parcel:
    """Return what `answer_task` takes: a question, images [n, c, h, w], the file."""
    given = with_question(asked, {FILE: contents, "images": images.astype("<f4").tobytes()})
    return replace(given, facts={**given.facts, "shape": list(images.shape)})


def answer_task(given: Parcel) -> Parcel:
    """Do as `answer_onnx` with `with_images`; runs in a process of its own."""
    images = np.frombuffer(given.files["images"], "<f4").reshape(given.facts["shape"])
    return _packed(answer_onnx(given.files[FILE], images, question_of(given), limits_of(given)))


def answer_onnx(contents: bytes, images: Images, asked: Asked, limits: LoadLimits) -> Answers:
    """Run a file on images [n, c, h, w].

    Raises:
        InputRejectedError: neither the graph as it came nor as it was lifted can be run.
    """
    own, other = read_model(contents), without_functions(read_model(contents), limits)
    other = without_attention(other, limits)
    take_branches_(other)
    reduce_(own, asked)
    reduce_(other, asked)
    lift = lifted(other, asked)
    file = together = None
    reason = ""
    try:
        session = _session(_runnable(own, lift, asked))
        in_order = (
            np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if lift.channels_last else images
        )
        file = _run(session, in_order, lift.batch or 1)
        together = None if lift.batch else _run_at_once(session, in_order[:TOGETHER])
    except (MemoryError, InputRejectedError):
        raise
    except Exception as error:  # noqa: BLE001 - the runtime raises kinds of its own
        reason = first_line(error)
    by_lifted = None
    if file is None or lift.rounded:
        try:
            by_lifted = _run(_session(lift.model), images, lift.batch or 1)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raise InputRejectedError(
                f"ONNX Runtime cannot run the network ({reason or first_line(error)}), so that its "
                "import cannot be compared; export it for ONNX Runtime"
            ) from None
    return Answers(file=file, lifted=by_lifted, together=together, rounded=lift.rounded)


def answers_of(answer: Parcel) -> Answers:
    """Return what `answer_task` answers, which is as untrusted as the file.

    Raises:
        InputRejectedError: they are not of their form.
    """
    with untrusted_answer(InputRejectedError("the network's answers are damaged")):
        shapes, rounded = answer.facts["shapes"], str(answer.facts["rounded"])
        parts: dict[str, Images | None] = dict.fromkeys(PARTS)
        for name in PARTS:
            if name in shapes:
                numbers = np.frombuffer(answer.files[name], "<f4")
                parts[name] = numbers.reshape(shapes[name]).copy()
        return Answers(**parts, rounded=rounded)


def _packed(answers: Answers) -> Parcel:
    parts = {name: getattr(answers, name) for name in PARTS}
    there = {name: part for name, part in parts.items() if part is not None}
    shapes = {name: list(part.shape) for name, part in there.items()}
    return Parcel(
        facts={"rounded": answers.rounded, "shapes": shapes},
        files={name: part.astype("<f4").tobytes() for name, part in there.items()},
    )


def _runnable(model: ModelProto, lift: Lifted, asked: Asked) -> ModelProto:
    """Return the reduced graph with its free sides fixed, its batch left as it is."""
    kind = model.graph.input[0].type.tensor_type.elem_type
    name = model.graph.input[0].name
    _, *sides = shape_of(lift.model.graph.input[0])
    if lift.channels_last:
        sides = [*sides[1:], sides[0]]
    set_input(model.graph, [0, *sides])
    batch = lift.batch or "batch"
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info(name, kind, [batch, *sides]))
    return model


def _session(model: ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 4
    contents = model.SerializeToString()
    return onnxruntime.InferenceSession(contents, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, images: Images, batch: int) -> Images:
    """Return the answers for images that are taken ``batch`` at once, the last ones repeated."""
    parts = []
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        filled = np.concatenate([some, np.repeat(some[-1:], batch - len(some), axis=0)])
        parts.append(_answers(session, filled)[: len(some)])
    return np.concatenate(parts)


def _run_at_once(session: onnxruntime.InferenceSession, images: Images) -> Images | None:
    """Return the answers for images at once, or None where they are not taken so."""
    try:
        return _answers(session, images)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a batch that only seemed free
        return None


def _answers(session: onnxruntime.InferenceSession, images: Images) -> Images:
    value = session.get_inputs()[0]
    kinds = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
    (output,) = session.run(None, {value.name: images.astype(kinds.get(value.type, np.float32))})
    # One image whose axis is squeezed away is still one.
    if output.shape[:1] != (len(images),) and (len(images) > 1 or output.ndim > 1):
        raise ValueError(f"{output.shape} for {len(images)} images")
    return np.asarray(output, np.float32).reshape(len(images), -1)
