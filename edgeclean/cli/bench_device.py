"""The part of `edgeclean bench` that measures on a device over ssh."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeclean.cli.command import CACHES
from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.errors import ParityError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from edgeclean.bundle.verify import VerifiedBundle
    from edgeclean.devices.ssh import Device

UNSTEADY = 0.025  # the same mark as in `edgeclean.measure.latency`
TENSORRT = "tensorrt"
# Of `vcgencmd get_throttled`; the same 16 places further on have been so since it was started.
HELD_BACK = ("its voltage is too low", "its clocks are capped", "it is throttled", "it is too warm")


def bench_there(
    reporter: Reporter,
    bundle: Path,
    place: tuple[str, Path | None],
    runtime: str | None,
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """Measure on a device, tell what came back, and return it.

    Args:
        reporter: tells it.
        bundle: the bundle's folder.
        place: the device's URL, and an ssh configuration file.
        runtime: what runs both networks there; None for the one of the bundle's target.
        asked: every other option of the device, by the name of its setting, and "against"; None
            where it was not given.

    Raises:
        ParityError: the device computes something else; it was told before.
        EdgecleanError: see `edgeclean.bundle.remote_bench` and `edgeclean.bundle.remote_runtime`.
    """
    from edgeclean.bundle.verify import open_bundle
    from edgeclean.devices.ssh import parse_device

    device = parse_device(place[0], configuration=place[1])
    CACHES.set(True)  # engines and rounds stay there
    opened = open_bundle(bundle)
    chosen = runtime or opened.manifest["target"].get("runtime") or TENSORRT
    if chosen == TENSORRT:
        return _in_tensorrt(reporter, opened, device, asked)
    return _in_runtime(reporter, opened, device, chosen, asked)


def _in_tensorrt(
    reporter: Reporter, opened: VerifiedBundle, device: Device, asked: Mapping[str, Any]
) -> dict[str, Any]:
    from edgeclean.bundle.remote_bench import RemoteSettings, bench_opened

    _refuse(asked, ("against", "python", "threads"), "the bundle's kit builds engines of TensorRT")
    document = bench_opened(opened, device, RemoteSettings(**_given(asked)), reporter.note)
    latency = document["latency"]
    about = plain_table("", "")
    about.add_row(*cells("device", document["device"]["model"]))
    about.add_row(*cells("TensorRT", document["tensorrt"]))
    about.add_row(*cells("power mode", document["power_mode"]))
    for name, engine in document["engines"].items():
        found = engine["layer_precisions"]
        layers = found and ", ".join(f"{count} {kind}" for kind, count in found.items())
        about.add_row(*cells(f"layers of the {name} engine", layers))
    reporter.answer(document, _whole_table(latency), about)
    _say_unsteady(reporter, latency, "and pin its clocks (jetson_clocks)")
    return document


def _in_runtime(
    reporter: Reporter,
    opened: VerifiedBundle,
    device: Device,
    runtime: str,
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    from edgeclean.bundle.remote_runtime import RuntimeRemoteSettings, bench_in_runtime
    from edgeclean.load.limits import LoadLimits, read_input

    _refuse(asked, ("workspace_mib", "dla_core", "trtexec"), f"both networks run in {runtime}")
    settings = _given(asked)
    path = settings.pop("against", None)
    against = None if path is None else read_input(path, LoadLimits().file_bytes)
    how = RuntimeRemoteSettings(**settings)
    document = bench_in_runtime(opened, device, runtime, how, against=against, log=reporter.note)
    tell_board(reporter, document, device.host)
    return document


def tell_board(reporter: Reporter, document: dict[str, Any], host: str) -> None:
    """Tell what a board measured in its runtime.

    Raises:
        ParityError: it computes something else; the numbers were told before.
    """
    latency, parity, board = (document[one] for one in ("latency", "parity", "device"))
    difference, allowed = parity["max_relative_difference"], parity["tolerance"]
    about = plain_table("", "")
    about.add_row(*cells("device", board["model"] or board["machine"]))
    about.add_row(*cells("runtime", " ".join(document["runtime"].values())))
    about.add_row(*cells("threads", document["settings"]["threads"]))
    about.add_row(*cells("parity with the bundle", f"{difference:.1e}, allowed {allowed:.0e}"))
    about.add_row(*cells("state before", _state(document["before"])))
    about.add_row(*cells("state after", _state(document["after"])))
    reporter.answer(document, _whole_table(latency), about)
    for words in _held_back(document["after"]["throttled"] or 0):
        reporter.note(f"the device is held back: {words}; the times are of this state")
    _say_unsteady(reporter, latency, "and let nothing else run there")
    if difference > allowed:
        raise ParityError(
            f"on {host} {document['runtime']['name']} gives logits that differ from the bundle's "
            f"by {difference:.3g} of max(1, largest logit), and {allowed:.3g} is allowed; do not "
            "ship it there: use a higher precision, or another version of the runtime"
        )


def _given(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in asked.items() if value is not None}


def _refuse(asked: Mapping[str, Any], names: tuple[str, ...], why: str) -> None:
    """Refuse options that the chosen way of measuring does not have.

    Raises:
        UsageError: one was given.
    """
    wrong = [f"--{name.replace('_', '-')}" for name in names if asked.get(name) is not None]
    if wrong:
        raise UsageError(f"{why} on this device; leave {' and '.join(wrong)} out")


def _state(found: Mapping[str, Any]) -> str:
    """The hottest temperature, the slowest and the fastest clock, and who sets it."""
    said = [f"{max(found['temperatures_c'].values()):.0f} °C"] if found["temperatures_c"] else []
    clocks = sorted(found["clocks_mhz"].values())
    said += [f"{clocks[0]:.0f} to {clocks[-1]:.0f} MHz"] if clocks else []
    said += [found["governor"]] if found["governor"] else []
    return ", ".join(said) or "not told"


def _held_back(bits: int) -> list[str]:
    """What holds a Raspberry Pi back now, or has since it was started, in words."""
    now = [words for place, words in enumerate(HELD_BACK) if bits >> place & 1]
    before = [
        f"{words}, or was since it was started"
        for place, words in enumerate(HELD_BACK)
        if bits >> (16 + place) & 1 and words not in now
    ]
    return now + before


def _say_unsteady(reporter: Reporter, latency: Mapping[str, Any], advice: str) -> None:
    spread = max(latency[one]["coefficient_of_variation"] for one in ("original", "compressed"))
    if spread > UNSTEADY:
        reporter.note(f"the device was not steady: read the spread, {advice}")


def _whole_table(latency: Mapping[str, Any]) -> Table:
    table = times_table(latency, latency["kind"])
    table.add_row(*cells("speed-up", f"{latency['speedup']:.2f}x"))
    return table


def times_table(samples: Mapping[str, Any], kind: str) -> Table:
    """A table of the latencies of original and compressed network.

    Args:
        samples: percentiles in milliseconds, by network.
        kind: "measured" or "estimated".
    """
    table = plain_table("ms", ">p50", ">p90", ">p99", ">least", ">spread", "row")
    for name in ("original", "compressed"):
        sample = samples[name]
        times = (f"{sample[key]:.3g}" for key in ("p50_ms", "p90_ms", "p99_ms", "min_ms"))
        table.add_row(*cells(name, *times, f"{sample['coefficient_of_variation']:.1%}", kind))
    return table
