"""Policies and verdicts."""

from __future__ import annotations

import codecs
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from report_evidence import evidence, scan_report, synthetic_images
from tiny_networks import tiny_network

from edgeclean.errors import (
    AccuracyGateError,
    BackdoorSuspectedError,
    BudgetError,
    EdgecleanError,
    UsageError,
)
from edgeclean.gates import (
    GateVerdict,
    Policy,
    judge_result,
    judge_scan,
    read_policy,
    read_size,
    refuse_failed,
)
from edgeclean.images.labelled import LabelledImages
from edgeclean.measure.accuracy import Evaluation, evaluate
from edgeclean.report.page import render_html
from edgeclean.report.report import build_report, check_report
from exporters.onnx_exporter import export_onnx
from exporters.session import OnnxSession


def own(drop: float = 1.0) -> Evaluation:
    return Evaluation(
        images=200,
        images_sha256="ab" * 32,
        original_accuracy=0.9,
        compressed_accuracy=0.9 - drop / 100,
        drop_points=drop,
        drop_standard_error_points=0.5,
    )


def latency(speedup: float) -> Any:
    return replace(evidence().latency, speedup=speedup)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1),
        ("1", 1),
        ("500 kB", 500_000),
        ("500KB", 500_000),
        ("1.5 MiB", 1_572_864),
        ("2mib", 2_097_152),
        ("1GB", 10**9),
        ("0.1 GB", 10**8),
        ("7 B", 7),
        ("1 GiB", 2**30),
        ("3 KiB", 3072),
    ],
)
def test_sizes_are_read_exactly(text: int | str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1e6", "1 TB", "2 M", "1,5 MB", "1 MB\n2", "٣"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="such as 2 MiB"):
        read_size(text)


@given(st.integers(1, 10**12))
def test_a_number_of_bytes_is_itself(count: int) -> None:
    assert read_size(count) == read_size(str(count)) == Policy(max_size=count).max_size_bytes


def test_a_policy_file_is_read_and_options_win(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(
        'fail-on-backdoor = true\nmax-accuracy-drop = 1\nmin-speedup = 1.2\nmax-size = "2 MiB"\n',
        encoding="utf-8",
    )
    policy = read_policy(path, {})
    assert policy == Policy(
        fail_on_backdoor=True, max_accuracy_drop=1.0, min_speedup=1.2, max_size="2 MiB"
    )
    changed = read_policy(path, {"fail_on_backdoor": False, "max_size": "1 kB"})
    assert changed == replace(policy, fail_on_backdoor=False, max_size="1 kB")
    assert read_policy(None, {}) == Policy()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-acuracy-drop = 1", "unknown key .* nearest: max-accuracy-drop"),
        ("max-size = 1\nmax_size = 2", "given twice"),
        ("max-size = 1.5", "max-size is 1.5;"),
        ("max-size = 0", "it must be a whole number from 1 to 2.63-1, or a text of at most 40 "),
        ('max-size = "0.2 B"', "1 byte or more"),
        ("max-accuracy-drop = -1", "from 0 to 100"),
        ("max-accuracy-drop = nan", "from 0 to 100"),
        ("max-expected-drop = -1", "from 0 to 100"),
        ("max-expected-drop = nan", "from 0 to 100"),
        ("min-speedup = 0", "above 0"),
        ("min-speedup = inf", "above 0"),
        ("min-speedup = nan", "above 0"),
        ("fail-on-backdoor = 1", "true or false"),
        ("[ranks]\nratio = 2", "unknown key"),
        ("max-size =", "not a TOML file"),
        pytest.param(f"max-size = {'9' * 5000}", "4300 digits[^;]*$", id="digits"),
    ],
)
def test_a_policy_is_strict(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=words) as caught:
        read_policy(path, {"min_speedup": 1.5})
    assert str(caught.value).startswith(f"{path}: ")


def test_a_wrong_option_is_not_the_files(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(codecs.BOM_UTF8 + b'max-size = "2 MiB"\n')  # as Windows' Notepad writes it
    assert read_policy(path, {}).max_size == "2 MiB"
    with pytest.raises(UsageError, match=r"^options: max-size"):
        read_policy(path, {"max_size": "-5"})


def test_a_gate_without_a_forecast_has_no_number() -> None:
    (verdict,) = judge_result(Policy(max_expected_drop=2.0), None, 1, latency(2.0))
    assert (verdict.measured, verdict.passed) == (None, False)
    with pytest.raises(AccuracyGateError, match=r"max-expected-drop: no number \(no forecast\)"):
        refuse_failed((verdict,))


def test_a_gate_passes_at_its_bound_and_fails_beyond_it() -> None:
    for policy, good, bad, error in (
        (Policy(max_accuracy_drop=1.0), {"evaluation": own(1.0)}, {"evaluation": own(1.001)}, 5),
        (Policy(max_size=1000), {"onnx_bytes": 1000}, {"onnx_bytes": 1001}, 6),
        (Policy(min_speedup=1.5), {"latency": latency(1.5)}, {"latency": latency(1.499)}, 6),
    ):
        facts: dict[str, Any] = {"evaluation": own(), "onnx_bytes": 1000, "latency": latency(2.0)}
        (verdict,) = judge_result(policy, **{**facts, **good})
        assert verdict.passed
        refuse_failed([verdict])
        (verdict,) = judge_result(policy, **{**facts, **bad})
        assert not verdict.passed
        with pytest.raises(EdgecleanError, match="was asked") as caught:
            refuse_failed([verdict])
        assert caught.value.exit_code == error
        assert caught.value.facts == {"gates": [asdict(verdict)]}


@pytest.mark.parametrize(
    ("unit", "measured", "asked", "told"),
    [
        ("bytes", 9998, 2 * 2**20, ("9,998", "2,097,152")),
        ("times", 0.959343814858, 50, ("0.9593", "50")),
        ("times", 1.49999999, 1.5, ("1.49999999", "1.5")),
        ("times", 1.5, 1.5, ("1.5", "1.5")),
        ("times", math.nan, 1.5, ("nan", "1.5")),
    ],
)
def test_numbers_have_the_digits_that_tell_them_apart(unit, measured, asked, told) -> None:
    verdict = GateVerdict(
        gate="max-size", asked=asked, measured=measured, unit=unit, passed=False, detail="x"
    )
    assert verdict.in_numbers == told


def test_the_scans_gate() -> None:
    asked = Policy(fail_on_backdoor=True)
    assert judge_scan(Policy(), scan_report()) == ()
    (passed,) = judge_scan(asked, scan_report(suspected=False))
    assert passed.passed
    (failed,) = judge_scan(asked, scan_report())
    with pytest.raises(BackdoorSuspectedError, match="class 2"):
        refuse_failed([failed])


def test_the_first_failed_gate_decides_the_error_and_all_are_told() -> None:
    policy = Policy(max_accuracy_drop=0.5, max_size=10, min_speedup=1.0)
    verdicts = judge_result(policy, evaluation=own(), onnx_bytes=11, latency=latency(2.0))
    assert [verdict.passed for verdict in verdicts] == [False, False, True]
    with pytest.raises(
        AccuracyGateError, match=r"max-accuracy-drop: 1 .* max-size: 11 bytes"
    ) as no:
        refuse_failed(verdicts)
    assert len(no.value.facts["gates"]) == 3
    with pytest.raises(BudgetError):
        refuse_failed(verdicts[1:])


def test_a_number_that_is_none_passes_no_gate() -> None:
    (speed,) = judge_result(
        Policy(min_speedup=1.0), evaluation=None, onnx_bytes=1, latency=latency(math.nan)
    )
    (drop,) = judge_result(
        Policy(max_accuracy_drop=1.0), evaluation=own(math.nan), onnx_bytes=1, latency=latency(1.0)
    )
    assert not speed.passed
    assert not drop.passed


def test_accuracy_is_that_of_the_files() -> None:
    """Labelled with one network's own answers, that one is right and the other half of the time."""
    one, other = tiny_network(), tiny_network()
    pixels = np.random.default_rng(0).integers(0, 256, (300, 3, 8, 8), dtype=np.uint8)
    mean, std = (
        np.array(side, dtype=np.float32).reshape(3, 1, 1) for side in (one.spec.mean, one.spec.std)
    )
    images = ((pixels.astype(np.float32) / 255 - mean) / std).astype(np.float32)
    logits = OnnxSession(export_onnx(one)).predict(images)
    rival = (np.bincount(logits.argmax(axis=1)).argmax() + 1) % 5
    with torch.no_grad():
        other.module[-1].bias[rival] += float(np.median(logits.max(axis=1) - logits[:, rival]))
    files = export_onnx(one), export_onnx(other)
    answers = [OnnxSession(file).predict(images).argmax(axis=1) for file in files]
    labelled = LabelledImages(pixels=pixels, labels=answers[0], files=())
    agreement = float((answers[0] == answers[1]).mean())
    assert 0 < agreement < 1
    found = evaluate(*files, labelled, one.spec)
    assert (found.original_accuracy, found.compressed_accuracy) == (1.0, agreement)
    assert found.drop_points == pytest.approx(100 * (1 - agreement))
    expected = 100 * math.sqrt(agreement * (1 - agreement) / 300)
    assert found.drop_standard_error_points == pytest.approx(expected)
    same = evaluate(files[0], files[0], labelled, one.spec)
    assert (same.drop_points, same.drop_standard_error_points) == (0.0, 0.0)
    gained = evaluate(files[1], files[0], labelled, one.spec)
    assert gained.drop_points == -found.drop_points
    assert gained.images_sha256 == found.images_sha256


def test_the_documented_policy_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "gates.md").read_text("utf-8")
    (text,) = (block for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL))
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    policy = read_policy(path, {})
    assert policy.fail_on_backdoor
    assert None not in (policy.max_accuracy_drop, policy.max_size, policy.min_speedup)
    assert policy.max_expected_drop == 2.0


def test_verdicts_and_accuracy_stand_in_the_report_and_on_the_page() -> None:
    policy = Policy(fail_on_backdoor=True, max_accuracy_drop=2.0, max_size="1 MB", min_speedup=1.5)
    gates = judge_scan(policy, scan_report(suspected=False))
    gates += judge_result(policy, own(), 500_000, latency(1.96))
    facts = evidence(suspected=False)
    document = build_report(replace(facts, evaluation=own(), gates=gates))
    document = {**document, "manifest_sha256": "ef" * 32}
    check_report(document)
    assert [gate["gate"] for gate in document["gates"]] == [
        *("fail-on-backdoor", "max-accuracy-drop", "max-size", "min-speedup"),
    ]
    manifest = {"files": {"model.onnx": {"bytes": 500_000, "sha256": "cd" * 32}}}
    page = render_html(
        manifest, document, images=synthetic_images(), scan=scan_report(suspected=False)
    )
    for gate in gates:
        assert gate.gate in page
    for words in ("original 90.00 %", "compressed 89.00 %", "drop of 1.00", ">1.00 MB<", "1.96"):
        assert words in page, words
    plain = {**document, "evaluation": None, "gates": []}
    bare = render_html(
        manifest, plain, images=synthetic_images(), scan=scan_report(suspected=False)
    )
    assert 'id="gates"' not in bare
    failed = {**document["gates"][0], "passed": False}  # a bundle with such a verdict cannot be
    with pytest.raises(jsonschema.ValidationError):
        check_report({**document, "gates": [failed]})
