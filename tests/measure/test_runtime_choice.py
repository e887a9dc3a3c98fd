"""The runtimes of a run: chosen, refused early, converted, compared and measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from runtime_installed import installed_runtime
from tiny_networks import tiny_network, tiny_pixels

from edgeclean.cli.runtimes import fastest_line
from edgeclean.compression.latency_table import LatencyTable
from edgeclean.devices.targets import load_target
from edgeclean.environment import describe_environment, versions
from edgeclean.errors import BudgetError, ParityError, ToolchainError, UsageError
from edgeclean.gates import refuse_slower_than_planned
from edgeclean.measure.latency import LatencyReport, LatencySettings, measure_pair
from edgeclean.measure.runtime_latency import measure_runtime_pair
from edgeclean.measure.runtimes import (
    CONVERTED,
    FormInputs,
    RuntimeChoice,
    RuntimeInputs,
    Runtimes,
    chosen_runtimes,
    convert_and_measure,
    require_runtimes,
)
from exporters import EXPORTERS
from exporters.onnx_exporter import export_onnx
from exporters.parity import ParitySettings
from exporters.precision.lower import PrecisionSettings, lower_precision

SHORT = LatencySettings(runs=6, warmup_runs=2, time_budget_s=5.0)
CPU = load_target("cpu")


def inputs(precision: str = "fp32") -> RuntimeInputs:
    """What a run hands over, of two networks whose logits differ."""
    network, model = tiny_network(channels=16), export_onnx(tiny_network(channels=16))
    asked = PrecisionSettings(format=precision, agreement=0.9, int8_signal_db=10.0)  # type: ignore[arg-type]
    pixels = tiny_pixels(32)
    lowered = lower_precision(model, network.spec, pixels, asked)
    original = export_onnx(tiny_network(channels=24, seed=1))
    form = FormInputs(
        network=network,
        model=model,
        lowered=lowered,
        pixels=pixels,
        golden=4,
        parity=ParitySettings(),
        precision=asked,
    )
    measured = measure_pair(original, lowered.model, SHORT)
    return RuntimeInputs(form=form, original=original, latency=SHORT, measured=measured)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("tvm",), "the runtime 'tvm' is unknown; it must be one of onnxruntime, tensorrt, openv"),
        (("ncnn", "ncnn"), "names has 'ncnn' twice; name it once"),
        (("fastest", "ncnn"), "fastest tries all that are installed; give it alone"),
        (("",), "the runtime '' is unknown"),
    ],
)
def test_wrong_names_are_refused(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        RuntimeChoice(names=names)


@pytest.mark.parametrize(
    ("target", "runtime"),
    [
        ("cpu", "onnxruntime"),
        ("jetson", "tensorrt"),
        ("intel-cpu", "openvino"),
        ("raspberry-pi-4", "ncnn"),
        ("raspberry-pi-5", "ncnn"),
        ("android", "mnn"),
    ],
)
def test_a_target_names_its_runtime_and_the_option_wins(target: str, runtime: str) -> None:
    device = load_target(target)
    assert chosen_runtimes(RuntimeChoice(), device) == (runtime,)
    assert chosen_runtimes(RuntimeChoice(names=("openvino",)), device) == ("openvino",)
    assert runtime in EXPORTERS
    assert device.sources["runtime"]


def test_what_cannot_be_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.confined_runtime.installed_version", lambda _package: None)
    for name in CONVERTED:
        with pytest.raises(ToolchainError, match=rf"the runtime {name} was asked, .*\[{name}\]'"):
            require_runtimes(RuntimeChoice(names=(name,)), CPU, "fp32", SHORT)
    with pytest.raises(ToolchainError, match="openvino is not installed; pip install"):
        require_runtimes(RuntimeChoice(), load_target("intel-cpu"), "fp32", SHORT)
    require_runtimes(RuntimeChoice(names=("fastest",)), CPU, "fp32", SHORT)
    with pytest.raises(UsageError, match="tensorrt was asked for cpu, and an engine is built on"):
        require_runtimes(RuntimeChoice(names=("tensorrt",)), CPU, "fp32", SHORT)
    require_runtimes(RuntimeChoice(), load_target("jetson"), "bf16", SHORT)
    for precision in ("int8", "bf16"):
        with pytest.raises(UsageError, match=f"{precision} was asked of ncnn, which is given fp32"):
            require_runtimes(RuntimeChoice(names=("ncnn",)), CPU, precision, SHORT)
    on_gpu = replace(SHORT, provider="cuda")
    with pytest.raises(UsageError, match="runtimes are measured on the CPU, and the provider cuda"):
        require_runtimes(RuntimeChoice(names=("fastest",)), CPU, "fp32", on_gpu)


def test_nothing_is_done_for_onnx_runtime_alone() -> None:
    given = inputs()
    for names in ((), ("onnxruntime",)):
        made = convert_and_measure(RuntimeChoice(names=names), CPU, given)
        assert (made.kept, made.rows) == ((), ())


def test_a_runtime_that_was_asked_for_is_checked_and_measured() -> None:
    installed_runtime("mnn")
    given = inputs()
    told: list[str] = []
    made = convert_and_measure(
        RuntimeChoice(names=("mnn",)), CPU, given, progress=lambda what, *_: told.append(what)
    )
    (one,) = made.kept
    assert told[0] == "Converting for mnn"
    assert one.form.parity.max_relative_difference <= given.form.parity.tolerance
    assert one.form.parity.images == 4
    assert one.form.golden.shape == (4, 5)
    assert one.form.agreement is None
    assert one.latency.runtime == f"mnn {one.form.version}"
    assert one.latency.original.runs == one.latency.compressed.runs == 6
    rows = {row["name"]: row for row in made.rows}
    assert list(rows) == ["onnxruntime", "mnn"]
    assert rows["mnn"]["bytes"]["compressed"] == sum(map(len, one.form.files.values()))
    assert rows["mnn"]["bytes"]["original"] > rows["mnn"]["bytes"]["compressed"]
    assert all(row["kept"] for row in rows.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("openvino", "fp16"),
        ("openvino", "int8"),
        ("ncnn", "fp16"),
        ("mnn", "fp16"),
        ("mnn", "int8"),
    ],
)
def test_a_lowered_precision_is_judged_beside_parity(name: str, precision: str) -> None:
    installed_runtime(name, precision=precision)
    given = inputs(precision)
    (one,) = convert_and_measure(RuntimeChoice(names=(name,)), CPU, given).kept
    assert one.form.precision == precision
    assert one.form.parity.max_relative_difference <= 1e-4
    assert one.form.agreement is not None
    assert one.form.agreement.max_relative_difference > 0
    asked = replace(given.form.precision, fp16_signal_db=149.0, int8_signal_db=149.0)
    strict = replace(given, form=replace(given.form, precision=asked))
    with pytest.raises(ParityError, match=f"in {name} .* in {precision} does not compute what"):
        convert_and_measure(RuntimeChoice(names=(name,)), CPU, strict)


def test_a_runtime_that_computes_something_else_is_refused_and_fastest_leaves_it_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed_runtime("mnn")
    monkeypatch.setattr("edgeclean.measure.runtimes.CONVERTED", ("mnn",))  # the others take long
    given = inputs()
    given = replace(given, form=replace(given.form, network=tiny_network(channels=16, seed=3)))
    with pytest.raises(ParityError, match=r"the network in mnn 3[\d.]+ differs from PyTorch by"):
        convert_and_measure(RuntimeChoice(names=("mnn",)), CPU, given)
    made = convert_and_measure(RuntimeChoice(names=("fastest",)), CPU, given)
    assert made.kept == ()
    rows = {row["name"]: row for row in made.rows}
    assert "differs from PyTorch" in rows["mnn"]["problem"]
    assert rows["onnxruntime"]["kept"]
    assert not any(row["kept"] for name, row in rows.items() if name != "onnxruntime")


@pytest.mark.slow
def test_fastest_keeps_the_one_with_the_least_median_or_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed_runtime("mnn")
    monkeypatch.setattr("edgeclean.measure.runtimes.CONVERTED", ("openvino", "ncnn", "mnn"))
    given = inputs()
    made = convert_and_measure(RuntimeChoice(names=("fastest",)), CPU, given)
    times = {row["name"]: row["latency"]["compressed"]["p50_ms"] for row in made.rows}
    best = min(times, key=lambda name: times[name])
    assert len(times) > 1
    assert [one.form.name for one in made.kept] == ([] if best == "onnxruntime" else [best])
    assert f"the fastest runtime on this machine is {best} " in (fastest_line(made.rows) or "")
    assert fastest_line([row for row in made.rows if row["kept"]]) is None


def test_two_networks_of_different_images_are_not_compared() -> None:
    exporter = installed_runtime("mnn")
    small, large = (
        exporter.converted(export_onnx(tiny_network(size=size))).files for size in (8, 9)
    )
    with pytest.raises(Exception, match="only networks of one input shape can be compared"):
        measure_runtime_pair(exporter, small, large, SHORT)
    with pytest.raises(Exception, match="batch 2 was asked, and the original is fixed to batch 1"):
        measure_runtime_pair(exporter, small, small, replace(SHORT, batch=2))


def test_who_is_planned_by_a_runtimes_table_must_not_be_slower_in_it() -> None:
    installed_runtime("mnn")
    given = inputs()
    (one,) = convert_and_measure(RuntimeChoice(names=("mnn",)), CPU, given).kept

    def at(latency: LatencyReport, speedup: float) -> LatencyReport:
        low, high = speedup * 0.9, speedup * 1.1
        return replace(latency, speedup=speedup, speedup_low=low, speedup_high=high)

    table = LatencyTable(
        device=describe_environment().processor,
        runtime=f"mnn {one.form.version}, CPU",
        threads=1,
        batch=1,
        precision="fp32",
        versions={},
        network=None,
        blocks={},
    )
    slow, quick = (
        Runtimes(kept=(replace(one, latency=at(one.latency, speedup)),)) for speedup in (0.5, 2.0)
    )
    in_onnx_runtime = at(given.measured, 0.5)  # which nothing was planned by
    with pytest.raises(BudgetError, match="slower than the original on the machine that its lat"):
        refuse_slower_than_planned(table, in_onnx_runtime, slow)
    refuse_slower_than_planned(table, in_onnx_runtime, quick)
    refuse_slower_than_planned(None, in_onnx_runtime, slow)
    refuse_slower_than_planned(replace(table, device="a board"), in_onnx_runtime, slow)
    refuse_slower_than_planned(replace(table, runtime="ncnn 1.0, CPU"), in_onnx_runtime, slow)
    own = f"onnxruntime {versions()['onnxruntime']}, CPU"
    with pytest.raises(BudgetError):
        refuse_slower_than_planned(replace(table, runtime=own), in_onnx_runtime, Runtimes())
