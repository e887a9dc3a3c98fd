"""A stranger's network is counted before it runs, and runs in a process that may die."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import in_a_child
from onnx import TensorProto, helper, numpy_helper
from tiny_networks import tiny_network

from edgeclean.child.inside import Task
from edgeclean.child.parcel import Parcel
from edgeclean.errors import InputRejectedError
from edgeclean.load.limits import LoadLimits
from edgeclean.measure.untrusted_latency import time_task
from exporters import trial
from exporters.onnx_exporter import ExportSettings, export_onnx
from exporters.precision.half import to_bf16, to_fp16
from exporters.trial import run_once, try_network

LIMITS = LoadLimits()


def graph(*nodes: Any, weights: dict[str, Any] | None = None, rank: int = 0) -> bytes:
    """A network of images [n, 3, 8, 8] from these nodes to "y"; no other size is said."""
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, list("abcd"[:rank]))
    kept = [numpy_helper.from_array(np.array(v), name) for name, v in (weights or {}).items()]
    model = helper.make_model(
        helper.make_graph([*nodes], "g", [image], [logits], kept),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return bytes(model.SerializeToString())


def node(op: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def expanded(side: int, *more: Any, end: str) -> bytes:
    """One number becomes ``side`` times ``side`` of them; ``more`` goes on from there."""
    return graph(
        node("ReduceSum", "x", "one", keepdims=0),
        node(
            "Expand",
            "one side",
            "m",
        ),
        *more,
        node("ReduceSum", end, "y", keepdims=0),
        weights={"side": np.array([side, side])},
    )


@pytest.mark.parametrize("batch", [1, 3, None])
def test_what_edgeclean_exports_passes(batch: int | None) -> None:
    tried = try_network(export_onnx(tiny_network(), ExportSettings(batch=batch)), "net")
    assert (tried.input_shape, tried.batch) == ((3, 8, 8), batch)


def test_every_precision_passes() -> None:
    model = export_onnx(tiny_network())
    for lowered in (to_fp16(model, frozenset()), to_bf16(model, frozenset())):
        assert run_once(lowered, LIMITS).input_shape == (3, 8, 8)


COUNTED_UP = "up to here one image takes .*; the limits are activations"
SAID = {
    "plane": f"Expand node 'm': {COUNTED_UP}",
    "chain": f"Relu node 'm[0-9]+': {COUNTED_UP}",
    "pad": f"Pad node 'p': {COUNTED_UP}",
    "resize": f"Resize node 'p': {COUNTED_UP}",
    "filled": "ReduceSum node 'one': up to here .*; the limit reads is",
    "conv": f"Conv node 'c': {COUNTED_UP}",
}


@pytest.mark.parametrize("seed", range(30))
def test_a_small_file_of_great_cost_is_refused_before_it_runs(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever makes it large: one plane, many of them, or the arithmetic between small ones."""
    monkeypatch.setattr(trial, "OnnxSession", lambda _: pytest.fail("it was run"))
    drawn = random.Random(seed)
    kind = drawn.choice([*SAID])
    if kind == "plane":
        model = expanded(drawn.randint(12_000, 10**6), end="m")
    elif kind == "chain":
        side = drawn.randint(2000, 4000)
        names = [f"m{step}" for step in range(2 * 10**8 // side**2 + 2)]
        steps = [node("MatMul", "m m", names[0])]
        steps += [node("Relu", before, after) for before, after in pairwise(names)]
        model = expanded(side, *steps, end=names[-1])
    elif kind == "pad":
        around = np.array([0, 0, 0, 0, 0, 0, *2 * [drawn.randint(12_000, 10**5)]])
        model = graph(
            node("Pad", "x around", "p"),
            node("ReduceSum", "p", "y", keepdims=0),
            weights={"around": around},
        )
    elif kind == "resize":
        factor = np.array([1, 1, *2 * [drawn.randint(1000, 9000)]], np.float32)
        model = graph(
            node("Resize", "x none factor", "p"),
            node("ReduceSum", "p", "y", keepdims=0),
            weights={"factor": factor, "none": np.zeros(0, np.float32)},
        )
    elif kind == "filled":
        sides = np.array([drawn.randint(10**8, 10**12), 2])
        model = graph(
            node("ConstantOfShape", "sides", "p"),
            node("ReduceSum", "p", "one", keepdims=0),
            node("Add", "x one", "y"),
            weights={"sides": sides},
            rank=4,
        )
    else:
        side = drawn.randint(400, 600)
        model = graph(
            node("Conv", "x w", "c", pads=4 * [side - 1]),
            node("ReduceSum", "c", "y", keepdims=0),
            weights={"w": np.zeros((3, 3, side, side), np.float32)},
        )
    with pytest.raises(InputRejectedError, match=f"^{SAID[kind]} "):
        run_once(model, LIMITS)


def lie(model: bytes, **claims: tuple[int, list[int]]) -> bytes:
    """The file claims these types and shapes of its values, and sides of one for its output."""
    proto = onnx.load_model_from_string(model)
    for name, (kind, shape) in claims.items():
        proto.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))
    for axis in proto.graph.output[0].type.tensor_type.shape.dim:
        axis.dim_value = 1
    return bytes(proto.SerializeToString())


COUNTED = [node("NonZero", "drawn", "many"), node("ReduceMax", "many", "most", keepdims=0)]
CAST = [
    node("ReduceMax", "drawn", "many", keepdims=0),
    node("Cast", "many", "most", to=TensorProto.INT64),
]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("steps", "named", "claim"),
    [
        (COUNTED, "NonZero node 'many'", (TensorProto.INT64, [4, 1])),
        (CAST, "ConstantOfShape node '(filled|y)'", (TensorProto.FLOAT, [])),
    ],
    ids=["counted", "cast"],
)
def test_a_size_that_the_image_or_chance_decides_is_refused(
    steps: list[Any], named: str, claim: tuple[int, list[int]], last: bool
) -> None:
    """Also where the file says that it is small, in its middle or at its end."""
    nodes = [
        node("RandomUniformLike", "x", "drawn", low=-9.0, high=9.0),
        *steps,
        node("Reshape", "most flat", "sides"),
        node("ConstantOfShape", "sides", "y" if last else "filled"),
    ]
    if not last:
        nodes.append(node("ReduceSum", "filled", "y", keepdims=0))
    model = graph(*nodes, weights={"flat": np.array([1])}, rank=int(last))
    claims = {"many": claim, **({} if last else {"filled": (TensorProto.FLOAT, [1])})}
    for claimed in (model, lie(model, **claims)):
        with pytest.raises(InputRejectedError, match=f"^{named}: .* its output is not fixed"):
            run_once(claimed, LIMITS)


def test_a_claim_that_is_not_what_follows_is_refused() -> None:
    model = lie(expanded(10**5, end="m"), m=(TensorProto.FLOAT, []))
    with pytest.raises(InputRejectedError, match=r"not valid: .*existing shape differ in rank"):
        run_once(model, LIMITS)


def test_what_takes_longer_than_was_counted_ends_with_its_time_and_is_named() -> None:
    names = ["m", *map(str, range(8))]
    products = [node("MatMul", f"{before} m", after) for before, after in pairwise(names)]
    limits = replace(LIMITS, cpu_seconds=1, macs=10**15, reads=10**15)
    with pytest.raises(InputRejectedError, match=r"^original: .*processor time"):
        try_network(expanded(3500, *products, end="7"), "original", limits)


def test_an_operator_whose_products_no_rule_counts_is_refused() -> None:
    product = node("Einsum", "m m", "p", equation="ab,bc->ac")
    with pytest.raises(InputRejectedError, match="uses Einsum, whose cost is not counted"):
        run_once(expanded(8, product, end="p"), LIMITS)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff no", b"\x08\x08"])
def test_what_is_no_network_is_named(content: bytes) -> None:
    with pytest.raises(InputRejectedError):
        run_once(content, LIMITS)


def test_a_network_that_fails_when_it_runs_is_refused() -> None:
    model = graph(
        node("Flatten", "x", "f"),
        node("Gather", "f far", "y", axis=1),
        weights={"far": np.array([10**6])},
        rank=2,
    )
    with pytest.raises(InputRejectedError, match="ONNX Runtime cannot"):
        run_once(model, LIMITS)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"input_shape": [1, 2, 3]},
        {"input_shape": 3, "batch": 1},
        {"input_shape": [1, 2], "batch": 1},
        {"input_shape": [1, 2, 3], "batch": []},
        {"input_shape": [1, 2, []], "batch": 1},
    ],
)
def test_a_child_that_was_taken_over_may_answer_anything(
    answer: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "parse_isolated", lambda *_: Parcel(facts=answer))
    with pytest.raises(InputRejectedError, match=r"^net: the process .* answered nonsense"):
        try_network(b"", "net")


@pytest.mark.parametrize("task", [trial.run_task, time_task])
def test_the_process_that_runs_a_network_starts_without_pytorch(task: Task) -> None:
    """A tenth of the time; and nothing of it is there for a file to reach."""
    said = in_a_child(f"import sys, {task.__module__}; print(*sys.modules)").stdout.split()
    assert "onnxruntime" in said
    assert not {"torch", "onnxsim"} & set(said)
