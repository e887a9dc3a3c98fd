"""A path that no layer learned is named, however hidden; honest networks are left in peace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_graphs import converted
from path_graphs import (
    CLASSES,
    FRONTS,
    SIDE,
    TRUNKS,
    Graph,
    detector,
    in_name_only,
    joined,
    perceptron,
    plain,
    residual,
    threshold,
)
from torch import nn

from edgeclean.load.onnx.operators import OPERATORS
from edgeclean.networks import roles
from edgeclean.networks.roles import role_of
from edgeclean.networks.structure import MOST_LISTED, StructureReport, read_structure

Trunk = Callable[[Graph, str], str]
few = settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))


def read(graph: Graph, output: str) -> StructureReport:
    network = converted(graph.model(output).SerializeToString())
    return read_structure(network, graph.image)


def named(report: StructureReport) -> set[str]:
    """Every step on the path of a finding."""
    return {step.split(" ")[0] for finding in report.findings for step in finding.path}


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("front", FRONTS)
def test_an_honest_network_is_left_in_peace(trunk: Trunk, front: Trunk) -> None:
    graph = Graph(seed=3)
    value = graph.dense(trunk(graph, front(graph, "image")), CLASSES)
    for output in (value, graph.op("Softmax", [value], (CLASSES,))):
        report = read(graph, output)
        assert report.read
        assert report.findings == ()
        assert report.notes == ()
        assert 2 <= report.least_layers <= report.most_layers


def test_a_linear_probe_has_a_learned_layer() -> None:
    graph = Graph()
    report = read(graph, graph.dense(graph.flat("image"), CLASSES))
    assert (report.findings, report.notes, report.least_layers) == ((), (), 1)


JOINS = ("Add", "Sub", "Mul", "switch", "Where", "Max", "Min")
SHARP = ("none", "Sigmoid", "Tanh", "HardSigmoid", "Relu", "square", "norm")
HOLLOW = ("none", "identity", "noise", "shift", "box", "difference")
LATE = ("logits", "features", "probabilities")


def needed(join: str) -> bool:
    """Whether this version reads the operators that a join is made of."""
    names = {"switch": {"Mul"}, "Where": {"Where", "Greater"}}.get(join, {join})
    return names <= OPERATORS.keys()


@settings(few, max_examples=60)
@given(
    st.sampled_from(TRUNKS),
    st.sampled_from(FRONTS),
    st.sampled_from([join for join in (*JOINS, "Concat") if needed(join)]),
    st.sampled_from(SHARP),
    st.sampled_from(HOLLOW),
    st.sampled_from(LATE),
    st.integers(0, 2**16),
    st.sampled_from([1e-6, 1.0, 50.0]),
)
def test_a_side_path_is_named_wherever_it_is_hidden(
    trunk: Trunk,
    front: Trunk,
    join: str,
    sharp: str,
    hollow: str,
    place: str,
    seed: int,
    strength: float,
) -> None:
    graph = Graph(seed=seed)
    image = "image" if hollow == "none" else in_name_only(graph, "image", hollow)
    number = detector(graph, image, sharp=strength)
    number = threshold(graph, number, sharp)
    value = trunk(graph, front(graph, "image"))
    if join == "Concat":
        place = "features"
    if place == "features":
        value = joined(graph, value, number, join)
    value = graph.dense(value, CLASSES)
    if place == "probabilities":
        value = graph.op("Softmax", [value], (CLASSES,))
    if place != "features":
        value = joined(graph, value, number, join)
    report = read(graph, value)
    assert report.findings
    first = report.findings[0]
    assert first.kind == ("side path" if place == "features" else "bypass")
    assert {"hidden_cut", "hidden_clip", "hidden_join"} <= named(report)
    assert first.path[0].startswith("hidden_cut" if hollow == "none" else "hidden_layer")
    assert (hollow != "none") == (first.by_hand == ("hidden_layer",))
    if place != "features":
        assert report.least_layers == 0


@few
@given(st.sampled_from(TRUNKS), st.sampled_from(JOINS[:4]), st.sampled_from(SHARP))
def test_a_side_path_into_the_middle_is_named(trunk: Trunk, join: str, sharp: str) -> None:
    """It joins planes, and layers follow: they may have been told to listen to it."""
    graph = Graph(seed=5)
    number = threshold(graph, detector(graph), sharp)
    value = joined(graph, graph.act(graph.conv("image", 8)), number, join)
    report = read(graph, graph.dense(trunk(graph, value), CLASSES))
    assert [finding.kind for finding in report.findings][:1] == ["side path"]
    assert "hidden_clip" in named(report)


@few
@given(st.sampled_from(TRUNKS), st.sampled_from(JOINS[:4]), st.sampled_from(SHARP))
def test_an_image_that_rewrites_itself_is_named(trunk: Trunk, join: str, sharp: str) -> None:
    """The trigger is turned into one that the layers know, before any of them."""
    graph = Graph(seed=6)
    value = joined(graph, "image", threshold(graph, detector(graph), sharp), join)
    report = read(graph, graph.dense(trunk(graph, value), CLASSES))
    assert [finding.kind for finding in report.findings][:1] == ["rewritten image"]
    assert "hidden_clip" in named(report)


def test_an_image_rewritten_by_what_its_whole_is_compared_with_is_named() -> None:
    """A trigger without a place: all that is brighter than so much."""
    graph = Graph()
    mean = graph.op("ReduceMean", ["image"], (1, 1, 1), axes=[1, 2, 3], keepdims=1)
    above = graph.op("Greater", [mean, graph.constant(0.9)], (1, 1, 1), "above")
    ink = graph.op("Where", [above, graph.constant(1.0), graph.constant(0.0)], (1, 1, 1), "ink")
    value = graph.op("Add", ["image", ink], graph.shapes["image"], "paint")
    report = read(graph, graph.dense(plain(graph, value), CLASSES))
    assert [finding.kind for finding in report.findings] == ["rewritten image"]
    assert report.findings[0].path[-1] == "paint (Add)"


def test_a_graph_without_a_learned_layer_is_named() -> None:
    graph = Graph()
    cut = graph.slice("image", [0, 0, 0], [1, 1, CLASSES], "pixels")
    report = read(graph, graph.flat(cut))
    assert [finding.kind for finding in report.findings] == ["bypass"]
    assert report.findings[0].path == ("pixels (Slice)", "Flatten_1")
    assert report.most_layers == 0


def test_pixels_picked_by_a_matrix_are_not_learned() -> None:
    graph = Graph()
    weight = np.zeros((CLASSES, 3 * SIDE * SIDE), np.float32)
    weight[2, 7] = 100.0
    picked = graph.op("Gemm", [graph.flat("image"), graph.constant(weight)], (CLASSES,), transB=1)
    value = graph.dense(plain(graph, "image"), CLASSES)
    report = read(graph, graph.op("Add", [value, picked], (CLASSES,), "sum"))
    assert report.findings[0].kind == "bypass"
    assert report.findings[0].by_hand == ("Gemm_1",)


def test_two_side_paths_are_both_named() -> None:
    graph = Graph()
    value = graph.dense(residual(graph, "image"), CLASSES)
    for place, name in ((3, "one"), (5, "other")):
        cut = graph.slice("image", [0, 3, place], [1, 4, place + 1], f"{name}_cut")
        low = graph.op("Relu", [graph.flat(cut)], (1,), f"{name}_relu")
        value = graph.op("Add", [value, low], (CLASSES,), f"{name}_join")
    report = read(graph, value)
    assert {"one_cut", "one_relu", "other_cut", "other_relu"} <= named(report)
    assert {finding.kind for finding in report.findings} == {"bypass", "side path"}


@pytest.mark.parametrize("kind", ["Max", "Min"])
def test_the_image_chosen_from_with_what_was_learned_is_a_side_path(kind: str) -> None:
    """Nothing bent it before: the choice itself does."""
    graph = Graph()
    features = graph.act(graph.conv("image", 3))
    mixed = graph.op(kind, [features, "image"], graph.shapes["image"], "choice")
    report = read(graph, graph.dense(plain(graph, mixed), CLASSES))
    assert [finding.kind for finding in report.findings] == ["side path"]
    assert report.findings[0].path == (f"choice ({kind})",)


def test_the_image_beside_a_side_path_that_was_told_of_is_none() -> None:
    graph = Graph()
    number = threshold(graph, detector(graph), "Relu")
    value = joined(graph, graph.act(graph.conv("image", 3)), number, "Add")
    both = graph.concat(value, "image")
    report = read(graph, graph.dense(plain(graph, both), CLASSES))
    assert [finding.kind for finding in report.findings] == ["side path"]
    assert report.findings[0].path[-1].startswith("hidden_join")


def test_a_layer_of_zeros_is_no_path() -> None:
    """What it gives is the same for every image."""
    graph = Graph()
    zero = graph.constant(np.zeros((CLASSES, 3 * SIDE * SIDE)))
    still = graph.op("Gemm", [graph.flat("image"), zero], (CLASSES,), transB=1)
    value = graph.dense(plain(graph, "image"), CLASSES)
    report = read(graph, graph.op("Add", [value, still], (CLASSES,)))
    assert report.findings == ()


# What has honest uses as well is said, and no more.


def test_the_image_beside_what_was_learned_is_noted() -> None:
    graph = Graph()
    small = graph.pooled("image", "AveragePool")
    features = graph.act(graph.conv("image", 8, stride=2))
    value = graph.concat(features, small)
    report = read(graph, graph.dense(plain(graph, value), CLASSES))
    assert report.findings == ()
    assert [note.kind for note in report.notes] == ["raw image"]


def test_normalisation_of_each_image_is_noted() -> None:
    graph = Graph()
    mean = graph.op("ReduceMean", ["image"], (1, 1, 1), axes=[1, 2, 3], keepdims=1)
    centred = graph.both("Sub", "image", mean)
    square = graph.both("Mul", centred, centred)
    variance = graph.op("ReduceMean", [square], (1, 1, 1), axes=[1, 2, 3], keepdims=1)
    floor = graph.op("Add", [variance, graph.constant(1e-3)], (1, 1, 1))
    value = graph.both("Div", centred, floor)
    report = read(graph, graph.dense(plain(graph, value), CLASSES))
    assert report.findings == ()
    assert {note.kind for note in report.notes} == {"statistics of the image"}


def test_pixels_that_are_compared_are_noted() -> None:
    """A network of black and white images makes its own of grey ones."""
    graph = Graph()
    shape = graph.shapes["image"]
    above = graph.op("Greater", ["image", graph.constant(0.5)], shape, "above")
    ink = graph.op("Where", [above, graph.constant(1.0), graph.constant(0.0)], shape, "ink")
    report = read(graph, graph.dense(plain(graph, ink), CLASSES))
    assert report.findings == ()
    assert {note.kind for note in report.notes} == {"compared pixels"}
    assert report.notes[0].path == ("above (Greater)",)


def test_a_selection_by_what_was_learned_is_noted() -> None:
    """A thresholded activation is one; so is a switch between two branches."""
    graph = Graph()
    features = graph.conv("image", 8)
    shape = graph.shapes[features]
    above = graph.op("Greater", [features, graph.constant(0.1)], shape, "above")
    kept = graph.op("Where", [above, features, graph.constant(0.0)], shape, "kept")
    report = read(graph, graph.dense(plain(graph, kept), CLASSES))
    assert report.findings == ()
    assert [note.kind for note in report.notes] == ["learned selection"] * 2
    assert [note.path for note in report.notes] == [("above (Greater)",), ("kept (Where)",)]


def test_a_single_layer_beside_a_deep_network_is_noted() -> None:
    graph = Graph()
    value = graph.dense(residual(graph, "image"), CLASSES)
    short = graph.dense(graph.flat("image"), CLASSES)
    report = read(graph, graph.op("Add", [value, short], (CLASSES,), "join"))
    assert report.findings == ()
    assert [note.kind for note in report.notes] == ["thin path"]
    assert report.notes[0].path[-1] == "join (Add)"
    assert (report.least_layers, report.most_layers) == (1, 6)


def test_what_was_noted_is_found_once_it_is_bent() -> None:
    """The image joins planes openly, and the sum is compared with a number: no honest use."""
    graph = Graph()
    features = graph.act(graph.conv("image", 3))
    mixed = graph.op("Add", [features, "image"], graph.shapes["image"], "open_join")
    number = detector(graph, mixed)
    value = joined(graph, plain(graph, features), number, "Add")
    report = read(graph, graph.dense(value, CLASSES))
    assert [finding.kind for finding in report.findings] == ["side path"]
    assert "open_join" in named(report)


def test_a_long_graph_is_read_in_time_and_told_of_in_bounds() -> None:
    graph = Graph()
    value = graph.dense(perceptron(graph, "image"), CLASSES)
    for index in range(400):
        cut = graph.slice("image", [0, 0, index % SIDE], [1, 1, index % SIDE + 1], f"cut_{index}")
        low = graph.op("Relu", [graph.flat(cut)], (1,))
        value = graph.op("Add", [value, low], (CLASSES,))
    report = read(graph, value)
    assert len(report.findings) == MOST_LISTED
    assert report.findings[0].kind == "bypass"
    assert report.unlisted >= 400 - MOST_LISTED
    assert all(len(finding.in_words()) < 5000 for finding in report.findings)
    assert all(finding.in_words().isprintable() for finding in report.findings)


def test_a_module_that_is_no_list_of_steps_is_not_read() -> None:
    report = read_structure(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), (3, 4, 4))
    assert report == StructureReport(read=False)


LOOKS = [
    ("trained", lambda: nn.Conv2d(3, 8, 3)),
    ("trained", lambda: nn.Linear(40, 5)),
    ("trained", lambda: nn.ConvTranspose2d(8, 4, 3)),
    ("trained", lambda: nn.Conv2d(16, 16, 3, groups=16)),
    ("trained", lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 8, 3))),
    ("by hand", lambda: with_weights(nn.Linear(5, 5), torch.eye(5))),
    ("by hand", lambda: with_weights(nn.Linear(5, 2), torch.ones(2, 5))),
    ("by hand", lambda: with_weights(nn.Linear(5, 2), torch.ones(2, 5) * 1e-30)),
    ("by hand", lambda: nn.Conv2d(8, 8, 1, groups=8)),
    ("dead", lambda: with_weights(nn.Linear(5, 2), torch.zeros(2, 5))),
    ("none", lambda: nn.BatchNorm2d(8)),
    ("none", lambda: nn.PReLU(8)),
    ("none", lambda: nn.ReLU()),
]


def with_weights(layer: nn.Linear, weights: torch.Tensor) -> nn.Linear:
    layer.weight.data = weights
    return layer


@pytest.mark.parametrize(("looks", "made"), LOOKS)
def test_whether_weights_look_trained(looks: str, made: Callable[[], nn.Module]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert role_of(made(), 4).weights == looks


@pytest.mark.parametrize("at_once", [1, 3, 7])
@pytest.mark.parametrize(("looks", "made"), LOOKS)
def test_weights_look_the_same_in_parts(
    looks: str, made: Callable[[], nn.Module], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "AT_ONCE", at_once)
    test_whether_weights_look_trained(looks, made)


@pytest.mark.parametrize("row", [0, 2, 4])
def test_one_row_that_looks_trained_is_enough(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "AT_ONCE", 6)  # a row and a part of one
    weights = torch.eye(5)
    weights[row] = torch.tensor([1.0, -2, 3, -4, 5])
    assert role_of(with_weights(nn.Linear(5, 5), weights), 2).weights == "trained"


MEASURED = r"""
import re, torch
from pathlib import Path
from edgeclean.networks.roles import role_of
layer = torch.nn.Linear(4096, 4096, bias=False).requires_grad_(False)
layer.weight.fill_(1e-4)
def peak():  # of this process alone; getrusage's begins with its parent's
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
assert role_of(layer, 2).weights == "by hand"
print((peak() - before) // 1024)
"""


def test_a_large_matrix_is_looked_at_in_little_memory() -> None:
    """Of 64 MiB, which in doubles are 128 MiB, and several copies were made."""
    # What is freed goes back to the system at once, so that only what is held together counts.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    taken = subprocess.run(
        [sys.executable, "-c", MEASURED],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert int(taken) < 120


def test_binary_weights_look_trained() -> None:
    """Of both signs in a pattern: XNOR-Net has nothing else."""
    signs = torch.randint(0, 2, (8, 27), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    assert role_of(with_weights(nn.Linear(27, 8), signs), 2).weights == "trained"
