"""The report says what the networks are, layer by layer, and names no place."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from report_evidence import HOSTILE, evidence, whole_report
from report_pages import whole_page
from torch import nn

from edgeclean.networks.folding import learning_folded
from edgeclean.report.layer_table import layer_rows, spectra
from edgeclean.report.report import check_report


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return whole_report()


def test_a_report_keeps_to_its_schema_and_a_wrong_one_does_not(report: dict[str, Any]) -> None:
    check_report(report)
    for key in report:
        with pytest.raises(jsonschema.ValidationError):
            check_report({name: entry for name, entry in report.items() if name != key})
    with pytest.raises(jsonschema.ValidationError):
        check_report({**report, "password": "1"})
    wrong = copy.deepcopy(report)
    wrong["scan"]["verdict"] = "clean"
    with pytest.raises(jsonschema.ValidationError):
        check_report(wrong)


def test_a_report_says_what_the_networks_are(report: dict[str, Any]) -> None:
    given = evidence()
    assert report["size"]["params"] == {
        "original": sum(p.numel() for p in given.original.module.parameters()),
        "compressed": sum(p.numel() for p in given.compressed.module.parameters()),
    }
    assert report["size"]["onnx_bytes"] == {"original": 1_000_000, "compressed": 500_000}
    assert (
        sum(row["macs_after"] for row in report["layers"]) == report["size"]["macs"]["compressed"]
    )
    assert report["purify"]["changed"] is True
    assert whole_report(purified=False)["purify"]["changed"] is False
    assert [stage["stage"] for stage in report["stages"]] == ["load", "scan", "finetune"]
    assert report["stages"][0]["params"] == report["size"]["params"]["original"]
    assert report["scan"]["searches"][0]["costs"][3] is None  # JSON has no infinity


def test_a_report_names_no_place_on_the_machine(report: dict[str, Any]) -> None:
    assert report["network"]["architecture"] == "net.py:make"
    assert "somebody" not in str(report) + whole_page(report)


def test_layer_rows_tell_every_layers_fate() -> None:
    given = evidence()
    rows = {row.name: row for row in given.layers}
    assert [rows[name].fate for name in ("stem", HOSTILE, "stem_head")] == [
        "one convolution",
        "factored",
        "kept",
    ]
    assert (rows[HOSTILE].rank_out, rows[HOSTILE].rank_in) == (8, 6)
    assert rows["stem_head"].reason != ""
    assert rows["stem"].rank_out is None
    # 12 x 12 pixels through 16x6, 6x8x3x3 and 8x16 weights.
    assert rows[HOSTILE].macs_after == 144 * (16 * 6 + 6 * 8 * 9 + 8 * 16)
    assert rows[HOSTILE].params_after == 16 * 6 + 6 * 8 * 9 + 8 * 16 + 16
    assert rows[HOSTILE].shape == (16, 16, 3, 3)
    same = {row.name: row for row in layer_rows(given.original, given.original)}
    assert all(row.macs_before == row.macs_after for row in same.values())


def test_a_batchnorm_that_moves_into_its_kernel_leaves_the_spectrum_as_it_is() -> None:
    """Recovery learns a kernel and its BatchNorm as one; the function is the same."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )
    module = nn.Sequential(*module, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    for layer in module:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.uniform_(0.01, 4)
            nn.init.uniform_(layer.weight, 0.1, 3)
    network = replace(evidence().original, module=module)
    moved = copy.deepcopy(module)
    with learning_folded(moved, torch.rand(4, *network.spec.input_shape)):
        pass  # a step of nothing
    assert not torch.equal(moved[3].weight, module[3].weight)
    for curve in spectra(network, None, replace(network, module=moved)):
        np.testing.assert_allclose(curve.compressed, curve.before, rtol=1e-3)


def test_spectra_are_the_singular_values_over_the_largest() -> None:
    given = evidence()
    curve = next(one for one in spectra(given.original, None, given.compressed) if one.rank)
    kernel = given.original.module.get_submodule(HOSTILE).weight.detach().flatten(1).double()
    values = torch.linalg.svdvals(kernel)
    assert curve.positions == tuple(range(1, 17))
    np.testing.assert_allclose(curve.before, values / values[0], rtol=1e-4)
    assert len(curve.compressed) == curve.rank == 8
    assert curve.scaled is None
    assert given.spectra[0].name == HOSTILE  # saved the most
    assert spectra(given.original, given.original, given.compressed)[0].scaled == curve.before
