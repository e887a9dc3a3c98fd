"""Measure a bundle on a device: copy it, check and run it there, and check its JSON here.

Every step can be repeated: a whole copy is not copied twice, engines and finished rounds stay on
the device, and a half copied bundle never has the name of a whole one.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeclean.bundle import kit
from edgeclean.bundle.manifest import CHECKSUMS, read_checksums, sha256
from edgeclean.bundle.verify import verify_bundle
from edgeclean.devices.ssh import Device
from edgeclean.errors import EdgecleanError, InputRejectedError, ToolchainError, UsageError
from edgeclean.files.schema import first_violation
from edgeclean.networks.state import JsonValue
from edgeclean.settings import Settings, setting

MAX_ANSWER_BYTES = 4 << 20
WORK = "work"  # beside the bundle there
HOME = ".edgeclean"  # in the device's home folder, where ssh begins
KIT_ERRORS: dict[int, type[EdgecleanError]] = {
    2: UsageError,
    3: InputRejectedError,
    7: ToolchainError,
    8: ToolchainError,
    9: ToolchainError,
}
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSettings(Settings):
    """Settings of a measurement on a device.

    Attributes:
        rounds: rounds of original and compressed in turns.
        seconds: seconds that each network runs in each round.
        workspace_mib: memory for TensorRT's builder; a Jetson shares its memory with its processor.
        dla_core: accelerator core to build for, with the GPU for layers that it cannot run; None
            for the GPU alone.
        trtexec: path of trtexec on the device; None to search for it.
    """

    rounds: int = setting(5, at_least=1, at_most=10**6)
    seconds: int = setting(2, at_least=1, at_most=86_400)
    workspace_mib: int = setting(1024, at_least=1, at_most=2**20)
    dla_core: int | None = setting(None, at_least=0, at_most=15)
    trtexec: str | None = setting(None, longest=1000)


def bench_on_device(
    bundle: Path, device: Device, settings: RemoteSettings | None = None, *, log: Log
) -> dict[str, JsonValue]:
    """Copy a bundle to a device, measure it there against its original, and return the record.

    Args:
        bundle: a bundle with a ``kit/`` folder.
        device: the device, as `ssh.parse_device` returns it.
        settings: the length and the conditions of the measurement.
        log: called with each line of progress.

    Returns:
        A document that keeps to ``schemas/device.schema.json``.

    Raises:
        InputRejectedError: the bundle is broken, or what came back is not such a document.
        UsageError: the bundle has no kit, or another run holds the device's work folder.
        ToolchainError: no connection, no trtexec, no room, or an engine cannot be built; another
            run goes on from there.
    """
    settings = settings or RemoteSettings()
    record = verify_bundle(bundle)
    if kit.SCRIPT not in record.files:
        raise UsageError(
            f"{bundle} has no kit for a device: it was made for a target without TensorRT; make it "
            "again with --target jetson, say"
        )
    place = f"{HOME}/{record.manifest_sha256[:16]}"
    _copy(bundle, record.files, device, place, log)
    log("measuring on the device")
    finished = device.run(["sh", f"{place}/bundle/{kit.SCRIPT}", *_words(settings, place)], log=log)
    if finished.returncode != 0:
        _raise_from_kit(finished.returncode, finished.stderr, device)
    answer = device.run(["head", "-c", str(MAX_ANSWER_BYTES + 1), f"{place}/{WORK}/result.json"])
    return read_record(answer.stdout, record.manifest_sha256)


def read_record(content: bytes, manifest_sha256: str) -> dict[str, JsonValue]:
    """Check the answer of a device, which is as untrusted as any input, and return it.

    Raises:
        InputRejectedError: the answer is too large, is not JSON of finite numbers, does not keep
            to the schema, or is of another bundle.
    """
    if len(content) > MAX_ANSWER_BYTES:
        raise InputRejectedError(f"the device's answer is larger than {MAX_ANSWER_BYTES} bytes")
    try:
        document: dict[str, JsonValue] = json.loads(
            content, parse_float=_finite, parse_int=_finite_int, parse_constant=_finite
        )
    except (ValueError, RecursionError):
        raise InputRejectedError(
            "the device's answer is not JSON of finite numbers; run again"
        ) from None
    violation = first_violation(document, "device")
    if violation is not None:
        raise InputRejectedError(f"the device's answer does not fit its schema {violation}")
    if document["manifest_sha256"] != manifest_sha256:
        raise InputRejectedError("the device answered for another bundle; run again")
    return document


def _finite(text: str) -> float:
    """Read a number of JSON; Python's reader takes NaN, Infinity and 1e999 as well."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _finite_int(text: str) -> int:
    return int(text) if len(text) < 20 else int(_finite(text))


def _copy(bundle: Path, names: tuple[str, ...], device: Device, place: str, log: Log) -> None:
    """Copy the bundle if it is not there; the name ``bundle`` is only ever a whole copy."""
    listed = (bundle / CHECKSUMS).read_bytes()
    there = device.run(["cat", f"{place}/bundle/{CHECKSUMS}"])
    if there.returncode == 0 and there.stdout == listed:
        log("the bundle is on the device already")  # its own kit checks every hash again
        return
    log("copying the bundle")
    partial = f"{place}/bundle.partial"
    steps = (
        (["rm", "-rf", "--", partial, f"{place}/bundle"], None),
        (["mkdir", "-p", "--", partial, f"{place}/{WORK}"], None),
        (["tar", "-C", partial, "-xf", "-"], _archive(bundle, names)),
        (["mv", "--", partial, f"{place}/bundle"], None),
    )
    for words, stdin in steps:
        finished = device.run(words, stdin=stdin)
        if finished.returncode != 0:
            lines = finished.stderr.decode("utf-8", "replace").strip().splitlines() or ["?"]
            raise ToolchainError(
                f"the bundle cannot be copied to {device.host}: {lines[0][:200]}; make room or "
                "check the folder's rights, and run the same command again"
            )


def _archive(bundle: Path, names: tuple[str, ...]) -> bytes:
    """Return an archive of the verified files, read once more and compared with their list."""
    hashes = read_checksums((bundle / CHECKSUMS).read_bytes())
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in names:
            content = (bundle / name).read_bytes()
            if name != CHECKSUMS and sha256(content) != hashes[name]:
                raise InputRejectedError(f"{name} was changed while it was copied; run again")
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def _words(settings: RemoteSettings, place: str) -> list[str]:
    words = ["--work", f"{place}/{WORK}", "--rounds", str(settings.rounds)]
    words += ["--seconds", str(settings.seconds), "--workspace-mib", str(settings.workspace_mib)]
    if settings.dla_core is not None:
        words += ["--dla-core", str(settings.dla_core)]
    if settings.trtexec is not None:
        words += ["--trtexec", settings.trtexec]
    return words


def _raise_from_kit(code: int, stderr: bytes, device: Device) -> None:
    """Raise the kit's own sentence as the error that its exit code stands for."""
    lines = stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason was given"]
    last = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])
    reason = last.removeprefix("error: ")[:400]
    raise KIT_ERRORS.get(code, ToolchainError)(f"{device.host}: {reason}")
