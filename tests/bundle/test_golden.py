"""A bundle's network is run by a child process as the runtime runs it, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_networks import tiny_contents

from edgeclean.bundle.golden import GoldenRun, asked, golden_run, run_golden, run_isolated
from edgeclean.child.parcel import Parcel
from edgeclean.errors import InputRejectedError
from exporters.session import OnnxSession


@pytest.fixture(scope="module")
def model() -> bytes:
    return tiny_contents().model


IMAGES = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)


def here(model: bytes, images: np.ndarray) -> GoldenRun:
    """Run in this process what the child runs."""
    return golden_run(run_golden(asked(model, images)))


def test_a_network_is_run_as_the_runtime_runs_it(model: bytes) -> None:
    for run in (run_isolated, here):
        ran = run(model, IMAGES)
        assert (ran.graph["opset"], ran.source_sha256) == (17, "ab" * 32)
        assert np.array_equal(ran.logits, OnnxSession(model).predict(IMAGES))


def test_images_of_another_shape_are_refused(model: bytes) -> None:
    with pytest.raises(InputRejectedError, match=r"takes images \(3, 8, 8\); the manifest says"):
        here(model, np.zeros((1, 3, 9, 8), np.float32))


@pytest.mark.parametrize(
    "answer",
    [
        Parcel(),
        Parcel(facts={"shape": [2, 2], "graph": {}, "source_sha256": ""}, files={"logits": b"x"}),
        Parcel(facts={"shape": [1], "graph": 7, "source_sha256": ""}, files={"logits": b"four"}),
        Parcel(facts={"shape": [1], "graph": {}, "source_sha256": ""}),
    ],
)
def test_a_child_that_was_taken_over_may_answer_anything(answer: Parcel) -> None:
    with pytest.raises(InputRejectedError, match="answered nonsense"):
        golden_run(answer)


def reshaped(*shape: int) -> bytes:
    """A network whose output is its input under another shape."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])],
        [numpy_helper.from_array(np.array(shape), "shape")],
    )
    opset = helper.make_opsetid("", 13)
    built = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return bytes(built.SerializeToString())


def test_a_network_that_fails_or_gives_other_rows_is_refused() -> None:
    assert here(reshaped(-1, 192), IMAGES).logits.shape == (3, 192)
    with pytest.raises(InputRejectedError, match=r"gives float32 \(1, 576\); float32 rows, one"):
        here(reshaped(1, -1), IMAGES)
    with pytest.raises(InputRejectedError, match="ONNX Runtime cannot run the network"):
        here(reshaped(-1, 97), IMAGES)


def test_memory_that_does_not_suffice_is_the_childs_to_tell(
    model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(self: OnnxSession, images: object) -> None:
        raise MemoryError

    # No input makes Python run out of memory on order; ONNX Runtime has errors of its own for it.
    monkeypatch.setattr(OnnxSession, "predict", exhaust)
    with pytest.raises(MemoryError):
        here(model, IMAGES)
