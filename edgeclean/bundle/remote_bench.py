"""Measure a bundle on a device: copy its networks, run them there, and check the answer here.

What runs on the device is shipped with this installation, never the bundle's own: a bundle may be
a stranger's. A bundle by another version of edgeclean has another kit; that is said, and ours is
sent, which reads no setting of the bundle that its manifest's schema does not check.

Every step can be repeated: a whole copy is not copied twice, engines and finished rounds stay on
the device, and a half copied bundle never has the name of a whole one.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeclean.bundle import kit
from edgeclean.bundle.manifest import CHECKSUMS, MANIFEST, MODEL, checksum_lines
from edgeclean.bundle.verify import VerifiedBundle, open_bundle
from edgeclean.devices.exchange import AnswerLimits
from edgeclean.devices.ssh import Device
from edgeclean.errors import EdgecleanError, InputRejectedError, ToolchainError, UsageError
from edgeclean.files.documents import parse_json
from edgeclean.files.schema import first_violation
from edgeclean.files.text import shown
from edgeclean.networks.state import JsonValue
from edgeclean.settings import Settings, setting
from edgeclean.version import __version__
from exporters.trial import try_network

MAX_ANSWER_BYTES = 4 << 20
MAX_MESSAGE_BYTES = 1 << 20  # lines of progress and errors, beside those of each round
ENGINE_SECONDS = 6 * 3600  # the most that one engine may take to be built
ROUND_SECONDS = 600  # beside the seconds that it measures
SLOWEST_BYTES_PER_SECOND = 2**16
WORK = "work"  # beside the bundle there
HOME = ".edgeclean"  # in the device's home folder, where ssh begins
CHECK = ("sh", "-c", f'cd -- "$0" && sha256sum -c {CHECKSUMS} >/dev/null')
NOT_FOUND = (126, 127)  # of a shell: what it was to run is not there, or does not run
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
    """Measure a bundle's network on a device against its original, and return the record.

    Args:
        bundle: a bundle with a ``kit/`` folder.
        device: the device, as `ssh.parse_device` returns it.
        settings: the length and the conditions of the measurement.
        log: called with each line of progress.

    Returns:
        A document that keeps to ``schemas/device.schema.json``.

    Raises:
        InputRejectedError: the bundle is broken, its programs are not those of its version, a
            network is too costly to run, or what came back is not such a document.
        UsageError: the bundle has no kit, or another run holds the device's work folder.
        ToolchainError: no connection, no trtexec, no room, or an engine cannot be built; another
            run goes on from there.
    """
    return bench_opened(open_bundle(bundle), device, settings or RemoteSettings(), log)


def bench_opened(
    opened: VerifiedBundle, device: Device, settings: RemoteSettings, log: Log
) -> dict[str, JsonValue]:
    """Measure as `bench_on_device` does, with a bundle that was verified already.

    Raises:
        EdgecleanError: see `bench_on_device`.
    """
    manifest_sha256 = opened.record.manifest_sha256
    files = _files_to_send(opened, log)
    for name in (kit.ORIGINAL, MODEL):
        try_network(files[name], name)
    place = f"{HOME}/{manifest_sha256[:16]}"
    copy_files(files, device, place, log)
    rounds = 2 * settings.rounds
    words = ["sh", f"{place}/bundle/{kit.SCRIPT}", *_words(settings, place)]
    seconds = 2 * ENGINE_SECONDS + rounds * (settings.seconds + ROUND_SECONDS)
    content = answer_of(words, device, place, limits_of(rounds, seconds), log)
    return read_record(content, manifest_sha256)


def limits_of(rounds: int, seconds: int) -> AnswerLimits:
    """Return the most that is taken from a kit at work: lines for each round, and the time."""
    return AnswerLimits(
        messages=MAX_MESSAGE_BYTES + 200 * rounds, lines=1000 + 4 * rounds, seconds=seconds
    )


def answer_of(
    words: Sequence[str], device: Device, place: str, limits: AnswerLimits, log: Log
) -> bytes:
    """Run a kit that was copied, and return the record that it wrote, which nobody checked yet.

    Args:
        words: that start it.
        device: where it was copied.
        place: the folder there, with the bundle's copy and the work folder.
        limits: the most that is taken from it.
        log: called with each line of progress.

    Raises:
        EdgecleanError: the kit's own sentence, as the error that its exit code stands for.
    """
    log("measuring on the device")
    finished = device.run(words, log=log, limits=limits)
    if finished.returncode != 0:
        _raise_from_kit(finished.returncode, finished.stderr, device)
    answer = device.run(
        ["head", "-c", str(MAX_ANSWER_BYTES + 1), f"{place}/{WORK}/result.json"],
        limits=AnswerLimits(answer=MAX_ANSWER_BYTES + 1),
    )
    return answer.stdout


def _files_to_send(opened: VerifiedBundle, log: Log) -> dict[str, bytes]:
    """Return what the device gets: the networks, the manifest, and the kit that is shipped here.

    Raises:
        UsageError: the bundle has no kit.
        InputRejectedError: its kit is not the one that its own version of edgeclean, which is
            installed here, writes.
    """
    held = opened.files
    own = [name for name in held if name.startswith(f"{kit.FOLDER}/")]
    if not own or any(name.startswith(f"{kit.FOLDER}/original/") for name in own):
        raise UsageError(
            "the bundle has no kit for a device: it was made for a target without TensorRT; make "
            "it again with --target jetson, say, or measure it there in another --runtime"
        )
    if kit.ORIGINAL not in held:
        raise InputRejectedError(f"{kit.ORIGINAL} is missing from the bundle's kit")
    shipped = kit.shipped_kit(opened.manifest, held[kit.ORIGINAL])
    refuse_other_programs(opened, shipped, log)
    files = {MODEL: opened.model, MANIFEST: held[MANIFEST], **shipped}
    return {**files, CHECKSUMS: checksum_lines(files)}


def refuse_other_programs(opened: VerifiedBundle, shipped: Mapping[str, bytes], log: Log) -> None:
    """Refuse a bundle whose kit is not the one that its own version, installed here, writes.

    Of a bundle by another version that is said, and the shipped kit goes to the device.

    Raises:
        InputRejectedError: the manifest names this version, and a file of the kit differs.
    """
    held = opened.files
    different = kit.first_difference(held, shipped)
    if different is not None:
        maker = opened.manifest["versions"].get("edgeclean")
        said = f"{different} is not what edgeclean {__version__} writes"
        if maker == __version__:
            raise InputRejectedError(
                f"{said}, though the manifest names that version; nothing was sent to the device: "
                "make the bundle again"
            )
        whose = "no named version" if maker is None else f"version {shown(maker)}"
        log(f"{said}, and the bundle is by {whose}: the kit installed here is sent")


def read_record(
    content: bytes, manifest_sha256: str, schema: str = "device"
) -> dict[str, JsonValue]:
    """Check the answer of a device, which is as untrusted as any input, and return it.

    Args:
        content: what came back.
        manifest_sha256: of the bundle that was sent.
        schema: name of the schema that the answer keeps to.

    Raises:
        InputRejectedError: the answer is too large, is not JSON of finite numbers, does not keep
            to the schema, or is of another bundle.
    """
    if len(content) > MAX_ANSWER_BYTES:
        raise InputRejectedError(f"the device's answer is larger than {MAX_ANSWER_BYTES} bytes")
    try:
        document: dict[str, JsonValue] = parse_json(content)
    except ValueError:
        raise InputRejectedError(
            "the device's answer is not JSON of finite numbers; run again"
        ) from None
    violation = first_violation(document, schema)
    if violation is not None:
        raise InputRejectedError(f"the device's answer does not fit its schema {violation}")
    if document["manifest_sha256"] != manifest_sha256:
        raise InputRejectedError("the device answered for another bundle; run again")
    return document


def copy_files(files: Mapping[str, bytes], device: Device, place: str, log: Log) -> None:
    """Copy the files if they are not there; the name ``bundle`` is only ever a whole copy.

    One that a power cut damaged afterwards is copied anew.

    Raises:
        ToolchainError: no connection, no room, or a shell that speaks before it is asked.
    """
    greeting = device.run(["true"]).stdout
    if greeting:
        raise ToolchainError(
            f"the shell of {device.host} prints {shown(greeting.decode('utf-8', 'replace'))} when "
            "a command is run, which would be taken for that command's answer; let it print on a "
            "terminal alone ([ -t 1 ] before the echo in its .bashrc, say)"
        )
    there = device.run(["cat", f"{place}/bundle/{CHECKSUMS}"])
    if there.returncode == 0 and there.stdout == files[CHECKSUMS]:
        if device.run([*CHECK, f"{place}/bundle"]).returncode == 0:
            log("the bundle is on the device already")
            return
        log("the bundle's copy on the device is damaged")
    log("copying the bundle")
    partial = f"{place}/bundle.partial"
    steps = (
        (["rm", "-rf", "--", partial, f"{place}/bundle"], b""),
        (["mkdir", "-p", "--", partial, f"{place}/{WORK}"], b""),
        (["tar", "-C", partial, "-xf", "-"], _archive(files)),
        (["mv", "--", partial, f"{place}/bundle"], b""),
    )
    for words, stdin in steps:
        seconds = AnswerLimits().seconds + len(stdin) // SLOWEST_BYTES_PER_SECOND
        finished = device.run(words, stdin=stdin, limits=AnswerLimits(seconds=seconds))
        if finished.returncode != 0:
            lines = finished.stderr.decode("utf-8", "replace").strip().splitlines() or ["?"]
            missing = finished.returncode in NOT_FOUND
            way = f"install {words[0]}" if missing else "make room or check the folder's rights"
            raise ToolchainError(
                f"the bundle cannot be copied to {device.host}: {lines[0][:200]}; {way} "
                "there, and run the same command again"
            )


def _archive(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(files.items()):
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
    if code in NOT_FOUND:
        reason += (
            "; install what is missing there, or name the device's Python with --python where that "
            "is asked for"
        )
    raise KIT_ERRORS.get(code, ToolchainError)(f"{device.host}: {reason}")
