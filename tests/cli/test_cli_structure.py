"""`inspect`, `scan` and `compress` say what a graph is made of; no side path goes unsaid."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import Terminal
from path_graphs import CLASSES, SIDE, Graph, detector, joined, plain
from small_checkpoint import quick_config

OPTIONS = (
    "--arch=onnx",
    f"--input-shape=3x{SIDE}x{SIDE}",
    f"--classes={CLASSES}",
    "--mean=0,0,0",
    "--std=1,1,1",
)


def written(folder: Path, *, hidden: bool) -> list[str]:
    """The words that name a network with or without a side path to its logits."""
    graph = Graph(seed=1)
    value = graph.dense(plain(graph, "image"), CLASSES)
    if hidden:
        value = joined(graph, value, detector(graph), "Add")
    (folder / "a.onnx").write_bytes(graph.model(value).SerializeToString())
    return [str(folder / "a.onnx"), *OPTIONS]


def test_inspect_names_the_side_path(tmp_path: Path, terminal: Terminal) -> None:
    words = written(tmp_path, hidden=True)
    said = terminal("inspect", *words)
    assert said.code == 0
    shown = re.sub(r"\s+", " ", said.out)
    assert "suspected: bypass" in shown
    assert "a path from the image to the logits passes no learned layer: hidden_cut" in shown
    structure = json.loads(terminal("inspect", *words, "--json").out)["structure"]
    assert structure["read"] is True
    assert structure["least_layers"] == 0
    (finding,) = structure["findings"]
    assert finding["kind"] == "bypass"
    assert finding["path"][0] == "hidden_cut (Slice)"
    assert finding["path"][-1] == "hidden_join (Add)"


@pytest.mark.slow
def test_inspect_counts_the_layers_of_an_honest_graph(tmp_path: Path, terminal: Terminal) -> None:
    words = written(tmp_path, hidden=False)
    said = terminal("inspect", *words)
    assert "every path from the image to the logits passes 3" in re.sub(r"\s+", " ", said.out)
    structure = json.loads(terminal("inspect", *words, "--json").out)["structure"]
    assert (structure["findings"], structure["notes"]) == ([], [])


def test_scan_suspects_the_graph(tmp_path: Path, terminal: Terminal) -> None:
    words = [*written(tmp_path, hidden=True), "--config", quick_config(tmp_path)]
    said = terminal("scan", *words)
    assert said.code == 0
    assert "the graph itself (bypass)" in said.out
    assert "warning: a path from the image to the logits" in said.err
    said = terminal("scan", *words, "--json", "--fail-on-backdoor")
    assert said.code == 4
    assert "no purification of weights removes" in said.err.splitlines()[-1]
    document = json.loads(said.out)
    assert document["verdict"] == "suspected"
    assert document["structure"]["findings"][0]["kind"] == "bypass"


def test_compress_says_it_everywhere_and_a_gate_refuses_it(
    tmp_path: Path, terminal: Terminal
) -> None:
    words = [*written(tmp_path, hidden=True), "--config", quick_config(tmp_path), "--no-cache"]
    output = tmp_path / "out"
    said = terminal("compress", *words, "-o", output, "--fail-on-backdoor")
    assert said.code == 4
    assert "the graph itself (bypass)" in said.err
    assert not output.exists()
    said = terminal("compress", *words, "-o", output)
    assert said.code == 0
    assert "structure: bypass" in said.out
    assert "warning: a path from the image to the logits" in said.err
    report = json.loads((output / "report.json").read_text("utf-8"))
    assert report["scan"]["verdict"] == "suspected"
    assert report["scan"]["structure"]["findings"]
    assert "hidden_cut" in report["warnings"][0]
    page = (output / "report.html").read_text("utf-8")
    assert "the graph itself (bypass)" in page
    assert "no purification of weights removes what it does itself" in page
    assert "was purified; that is not proof" not in page
    manifest = json.loads((output / "manifest.json").read_text("utf-8"))
    assert "hidden_cut" in manifest["history"][0]["notes"]["structure"][0]
