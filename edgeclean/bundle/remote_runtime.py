"""Measure a bundle on a device in a runtime that is installed there: ncnn on a Raspberry Pi, say.

As `edgeclean.bundle.remote_bench` does with TensorRT: what runs there is the kit of this
installation, in a process for each measurement, with the runtime of a Python there. Nothing is
installed, and nothing but the folder ``.edgeclean`` is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from safetensors.numpy import load

from edgeclean.bundle import kit
from edgeclean.bundle.manifest import CHECKSUMS, GOLDEN, MANIFEST, checksum_lines
from edgeclean.bundle.remote_bench import (
    HOME,
    ROUND_SECONDS,
    WORK,
    Log,
    answer_of,
    copy_files,
    limits_of,
    read_record,
    refuse_other_programs,
)
from edgeclean.bundle.runtime_kit import (
    ONNX_RUNTIME,
    carried_original,
    compressed_names,
    has_kit,
    shipped_runtime_kit,
)
from edgeclean.bundle.runtimes import try_files
from edgeclean.bundle.verify import VerifiedBundle
from edgeclean.devices.kit.runtime_engines import PACKAGES
from edgeclean.devices.ssh import Device
from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.files.text import shown
from edgeclean.networks.state import JsonValue
from edgeclean.settings import Settings, setting
from exporters.onnx_exporter import MODEL_FILE
from exporters.protocol import confined_exporter
from exporters.trial import try_network

GOLDEN_SECONDS = 3600  # for the golden images and the checks of every file
SCHEMA = "device-runtime"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRemoteSettings(Settings):
    """Settings of a measurement in a runtime that is installed on a device.

    Attributes:
        rounds: rounds of original and compressed in turns.
        seconds: seconds that each network runs in each round.
        threads: that the runtime computes with.
        python: path of the device's Python that has the runtime, from the home folder there.
    """

    rounds: int = setting(5, at_least=1, at_most=10**6)
    seconds: int = setting(2, at_least=1, at_most=86_400)
    threads: int = setting(1, at_least=1, at_most=1024)
    python: str = setting("python3", longest=1000)


def bench_in_runtime(
    opened: VerifiedBundle,
    device: Device,
    runtime: str,
    settings: RuntimeRemoteSettings,
    *,
    against: bytes | None,
    log: Log,
) -> dict[str, JsonValue]:
    """Measure a bundle's network on a device against its original, and return the record.

    Args:
        opened: a bundle that was verified.
        device: the device, as `ssh.parse_device` returns it.
        runtime: name of the runtime, which a Python of the device has.
        settings: the length and the conditions of the measurement.
        against: the original as ONNX in float32; None for the one that the bundle carries.
        log: called with each line of progress.

    Returns:
        A document that keeps to ``schemas/device-runtime.schema.json``. Whether its parity holds is
        for the caller to say.

    Raises:
        InputRejectedError: the bundle's programs are not those of its version, a network is too
            costly to run, or what came back is not such a document.
        UsageError: the bundle has no files of the runtime or no original, there is no kit for it,
            or another run holds the device's work folder.
        ToolchainError: no connection, the runtime is not installed here or there, or it cannot run
            a network; another run goes on from there.
    """
    manifest_sha256 = opened.record.manifest_sha256
    files = _files_to_send(opened, runtime, against, log)
    place = f"{HOME}/{manifest_sha256[:16]}-{runtime}"
    copy_files(files, device, place, log)
    words = [settings.python, "-I", "-B", f"{place}/bundle/{kit.PROGRAM}"]
    words += ["--work", f"{place}/{WORK}", "--rounds", str(settings.rounds)]
    words += ["--seconds", str(settings.seconds), "--threads", str(settings.threads)]
    rounds = 2 * settings.rounds
    seconds = GOLDEN_SECONDS + rounds * (settings.seconds + ROUND_SECONDS)
    content = answer_of(words, device, place, limits_of(rounds, seconds), log)
    record = read_record(content, manifest_sha256, SCHEMA)
    if record["runtime"]["name"] != runtime:
        raise InputRejectedError("the device answered for another runtime; run again")
    return record


def _files_to_send(
    opened: VerifiedBundle, runtime: str, against: bytes | None, log: Log
) -> dict[str, bytes]:
    """Return what the device gets: networks, manifest, golden images and the shipped kit."""
    if not has_kit(runtime):
        raise UsageError(
            f"the runtime {shown(runtime)} is measured on no device here; those are: "
            f"{', '.join(PACKAGES)}, and tensorrt by a bundle for it"
        )
    made = opened.manifest.get("runtimes", {})
    if runtime != ONNX_RUNTIME and runtime not in made:
        having = ", ".join([ONNX_RUNTIME, *sorted(made)])
        raise UsageError(
            f"the bundle has no files of the runtime {runtime}; it has those of {having}: make it "
            f"with --runtime {runtime}"
        )
    original = _original(opened, runtime, against)
    shipped = shipped_runtime_kit(opened.manifest, runtime, original)
    if against is None and carried_original(opened.files):
        refuse_other_programs(opened, shipped, log)
    names = [MANIFEST, GOLDEN, *compressed_names(runtime, original)]
    files = {**{name: opened.files[name] for name in names}, **shipped}
    return {**files, CHECKSUMS: checksum_lines(files)}


def _original(opened: VerifiedBundle, runtime: str, against: bytes | None) -> Mapping[str, bytes]:
    """Return the original in the runtime's form, which was run here before it runs on a device."""
    held = opened.files
    onnx = against if against is not None else held.get(kit.ORIGINAL)
    if runtime == ONNX_RUNTIME:
        try_network(opened.model, "the bundle's network")
    else:
        confined_exporter(runtime).require()
        carried = carried_original(held)
        if against is None and carried and opened.manifest["target"].get("runtime") == runtime:
            images = load(held[GOLDEN])["input"]  # which `verify` checked
            return try_files(runtime, carried, opened.manifest["runtimes"][runtime], images)
    if onnx is None:
        raise UsageError(
            f"this bundle has no original to compare with in {runtime}; give --against, which "
            "`edgeclean export CHECKPOINT -o original.onnx` writes"
        )
    try_network(onnx, "the original")
    return (
        {MODEL_FILE: onnx}
        if runtime == ONNX_RUNTIME
        else dict(confined_exporter(runtime).converted(onnx).files)
    )
