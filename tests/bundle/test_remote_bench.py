from __future__ import annotations

import json
import shlex
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from exhaustive import exhaustive
from loopback_sshd import Loopback
from programs import Program
from small_filesystem import small_filesystem
from standin_trtexec import place_trtexec
from tiny_networks import Block, tiny_contents, tiny_network

from edgeclean.bundle.bundle import write_bundle
from edgeclean.bundle.kit import kit_files
from edgeclean.bundle.remote_bench import (
    MAX_ANSWER_BYTES,
    RemoteSettings,
    bench_on_device,
    read_record,
)
from edgeclean.bundle.verify import verify_bundle
from edgeclean.devices.ssh import ConnectionLostError, Device, parse_device
from edgeclean.errors import InputRejectedError, ToolchainError, UsageError
from exporters.onnx_exporter import export_onnx

SETTINGS = RemoteSettings(rounds=2, seconds=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    original = export_onnx(tiny_network(Block(16), Block(16), channels=16))
    contents = tiny_contents()
    target = {"name": "orin-nano", "compute_capability": "8.7", "tensorrt": ">=10.3,<10.4"}
    kit = kit_files(original, target, precision="fp32", batch=1)
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    return write_bundle(path, replace(contents, target=target, reproducible_files=kit)).path


def device_of(server: Loopback) -> Device:
    return parse_device(server.url, configuration=server.configuration)


def bench(
    bundle: Path, server: Loopback, settings: RemoteSettings = SETTINGS
) -> tuple[dict[str, object], list[str]]:
    log: list[str] = []
    return bench_on_device(bundle, device_of(server), settings, log=log.append), log


def calls(server: Loopback) -> list[list[str]]:
    lines = (server.tools / "calls.log").read_text().splitlines()
    return [json.loads(line) for line in lines]


def work_folder(server: Loopback) -> Path:
    (work,) = (server.home / ".edgeclean").glob("*/work")
    return work


def test_a_device_builds_measures_and_answers(bundle: Path, server: Loopback) -> None:
    place_trtexec(server.tools, "10.3.0")
    record, log = bench(bundle, server)
    assert record["manifest_sha256"] == verify_bundle(bundle).manifest_sha256
    assert record["tensorrt"] == "10.3.0"
    sizes = [(bundle / name).stat().st_size for name in ("kit/original.onnx", "model.onnx")]
    latency = record["latency"]
    for name, size in zip(("original", "compressed"), sizes, strict=True):
        assert latency[name]["min_ms"] == pytest.approx(size / 1e4)
        assert latency[name]["runs"] == 40
        assert len(latency[name]["rounds_p50_ms"]) == 2
        assert record["engines"][name]["layer_precisions"] == {"fp16": 3}
    assert latency["speedup"] == pytest.approx(
        latency["original"]["p50_ms"] / latency["compressed"]["p50_ms"]
    )
    assert (latency["kind"], record["resumed"]) == ("measured", False)
    assert any("copying" in line for line in log)
    loaded = [word for call in calls(server) for word in call if word.startswith("--loadEngine")]
    assert len(loaded) == 4
    assert loaded[0] != loaded[1] == loaded[2] != loaded[3] == loaded[0]  # in turns, A B B A


def test_a_second_time_what_was_changed_alone_is_built(bundle: Path, server: Loopback) -> None:
    place_trtexec(server.tools, "10.3.0")
    first, _ = bench(bundle, server)
    built = [call for call in calls(server) if any(word.startswith("--onnx") for word in call)]
    again, log = bench(bundle, server)
    rebuilt = [call for call in calls(server) if any(word.startswith("--onnx") for word in call)]
    assert len(built) == len(rebuilt) == 2
    assert not any("copying" in line for line in log)
    assert [again["engines"][name]["cached"] for name in ("original", "compressed")] == [True] * 2
    assert again["engines"]["original"]["key"] == first["engines"]["original"]["key"]
    for plan in (work_folder(server) / "engines").glob("*.plan"):
        plan.write_bytes(plan.read_bytes() + b"x")
    assert not bench(bundle, server)[0]["engines"]["original"]["cached"]
    (model,) = server.home.glob(".edgeclean/*/bundle/model.onnx")
    model.write_bytes(model.read_bytes() + b"\0")
    _, log = bench(bundle, server)
    assert "the bundle's copy on the device is damaged" in log
    assert model.read_bytes() == (bundle / "model.onnx").read_bytes()


@pytest.mark.slow
def test_an_engine_of_another_tensorrt_is_not_used(bundle: Path, server: Loopback) -> None:
    place_trtexec(server.tools, "10.3.0")
    first, _ = bench(bundle, server)
    place_trtexec(server.tools, "11.1")
    later, _ = bench(bundle, server)
    assert later["tensorrt"] == "11.1.0"
    assert later["engines"]["original"]["key"] != first["engines"]["original"]["key"]


def test_a_dropped_connection_is_said_and_the_next_run_goes_on(
    bundle: Path, server: Loopback
) -> None:
    place_trtexec(server.tools, "10.3.0", seconds=1.5)
    settings = replace(SETTINGS, rounds=3)

    def cut() -> None:
        for _ in range(600):
            time.sleep(0.1)
            if list(server.home.glob(".edgeclean/*/work/rounds/*/0-compressed")):
                server.break_connections()
                return

    breaker = threading.Thread(target=cut)
    breaker.start()
    with pytest.raises(ConnectionLostError, match=r"connection.*broke.*run the same command again"):
        bench(bundle, server, settings)
    breaker.join()
    before = len(calls(server))
    place_trtexec(server.tools, "10.3.0")
    record, log = bench(bundle, server, settings)
    assert record["resumed"]
    assert len(record["latency"]["original"]["rounds_p50_ms"]) == 3
    assert any("already" in line for line in log)
    assert len(calls(server)) - before < 1 + 6  # some rounds were there


@pytest.mark.slow
def test_no_trtexec_is_one_clear_error_and_the_copy_stays(bundle: Path, server: Loopback) -> None:
    with pytest.raises(ToolchainError, match=r"trtexec was not found.*libnvinfer-bin"):
        bench(bundle, server)
    place_trtexec(server.tools, "10.3.0")
    _, log = bench(bundle, server)
    assert any("already" in line for line in log)


def test_a_device_without_a_program_is_told_which(bundle: Path, server: Loopback) -> None:
    tar = server.tools / "tar"
    tar.write_text("#!/bin/sh\necho 'sh: 1: tar: not found' >&2\nexit 127\n")
    tar.chmod(0o755)
    with pytest.raises(ToolchainError, match=r"tar.*; install tar there, and run") as caught:
        bench(bundle, server)
    assert "make room" not in str(caught.value)


@pytest.mark.parametrize("size", exhaustive(["64k", "4m"], ["4m"]))
def test_a_full_disk_is_one_clear_error_and_the_next_run_goes_on(
    bundle: Path, server: Loopback, size: str, program: Program
) -> None:
    """64 KiB do not hold the bundle; 4 MiB hold it and no engine."""
    place_trtexec(server.tools, "10.3.0")
    with small_filesystem(server.home, size, program):
        with pytest.raises(ToolchainError, match=r"(No space|disk is full|Wrote only).*make room"):
            bench(bundle, server)
        words = [str(program("mount")), "-o", "remount,size=200m", str(server.home)]
        subprocess.run(words, check=True)
        record, _ = bench(bundle, server)
        assert record["latency"]["original"]["runs"] == 40


def test_words_reach_the_device_as_they_are(server: Loopback, tmp_path: Path) -> None:
    hostile = f"a b; touch {tmp_path}/owned $(touch {tmp_path}/owned) `id` 'q' \"d\" * \\"
    answer = device_of(server).run(["printf", "%s", hostile])
    assert answer.stdout.decode() == hostile
    assert not (tmp_path / "owned").exists()


def test_an_unknown_host_key_is_never_accepted(server: Loopback, tmp_path: Path) -> None:
    known = server.configuration.parent / "known_hosts"
    known.write_text("")
    device = device_of(server)
    with pytest.raises(ConnectionLostError, match="accepted by hand") as caught:
        device.run(["true"])
    advised = shlex.split(str(caught.value).rpartition("by hand: ")[2])
    where = ["-F", str(server.configuration), "-p", str(device.port)]
    assert advised == ["ssh", *where, f"{device.user}@{device.host}"]


def test_a_changed_host_key_is_told_as_such(server: Loopback) -> None:
    device = device_of(server)
    stranger = Ed25519PrivateKey.generate().public_key()
    key = stranger.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    known = server.configuration.parent / "known_hosts"
    known.write_text(f"[{device.host}]:{device.port} {key}\n")
    with pytest.raises(ConnectionLostError, match="has another host key than the one") as caught:
        device.run(["true"])
    assert "somebody else answers" in str(caught.value)


def test_a_connection_that_breaks_is_no_new_host(server: Loopback) -> None:
    with pytest.raises(ConnectionLostError, match="failed or broke") as caught:
        device_of(server).run(["sh", "-c", "kill -9 $PPID; sleep 9"])
    assert "new host" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "ssh://-oProxyCommand=touch%20x",
        "ssh://-oProxyCommand=x@host",
        "ssh://host;id",
        "ssh://us er@host",
        "ssh://user@ho st",
        "ssh://user:secret@host",
        "ssh://$(id)@host",
        "ssh://host:99999",
        "ssh://host:0",
        "ssh://host/folder",
        "ssh://",
        "http://host",
        "host",
    ],
)
def test_what_is_no_device_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="a device is ssh://user@host"):
        parse_device(url)


def test_a_device_is_read_as_it_is_written() -> None:
    assert parse_device("ssh://nvidia@192.168.55.1:2222") == Device(
        host="192.168.55.1", user="nvidia", port=2222
    )
    assert parse_device("ssh://jetson.local") == Device(host="jetson.local")


def test_a_bundle_without_a_kit_is_refused(tmp_path: Path) -> None:
    plain = write_bundle(tmp_path / "plain", tiny_contents()).path
    with pytest.raises(UsageError, match="has no kit for a device"):
        bench_on_device(plain, Device(host="nowhere"), log=lambda line: None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not JSON"),
        (b"{}", "does not fit its schema"),
        (b"[" * 10**5, "not JSON"),
        (b" " * (MAX_ANSWER_BYTES + 1), "larger than"),
    ],
)
def test_an_answer_is_as_untrusted_as_any_input(content: bytes, said: str) -> None:
    with pytest.raises(InputRejectedError, match=said):
        read_record(content, "0" * 64)


def test_an_answer_for_another_bundle_is_refused(bundle: Path, server: Loopback) -> None:
    trtexec = place_trtexec(server.tools, "10.16")
    settings = replace(SETTINGS, dla_core=0, trtexec=str(trtexec))
    document, _ = bench(bundle, server, settings)
    content = json.dumps(document).encode()
    assert read_record(content, str(document["manifest_sha256"])) == document
    with pytest.raises(InputRejectedError, match="answered for another bundle"):
        read_record(content, "0" * 64)
    assert any("--useDLACore=0" in words for words in calls(server))


def test_a_place_that_cannot_be_written_is_one_clear_error(bundle: Path, server: Loopback) -> None:
    (server.home / ".edgeclean").write_text("a file where the folder should be")
    with pytest.raises(ToolchainError, match="the bundle cannot be copied to"):
        bench(bundle, server)


@pytest.mark.parametrize(
    "wrong", [{"rounds": 0}, {"seconds": 0}, {"workspace_mib": 0}, {"dla_core": -1}]
)
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        RemoteSettings(**wrong)  # type: ignore[arg-type]


def test_without_ssh_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolchainError, match="install OpenSSH's client"):
        Device(host="nowhere").run(["true"])


def test_every_part_of_an_address_reaches_ssh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program under ssh's name that says what it was called with."""
    (tmp_path / "ssh").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    said = parse_device("ssh://nvidia@[::1]:2222").run(["a b"]).stdout.decode().splitlines()
    assert said[-7:] == ["-p", "2222", "-l", "nvidia", "--", "::1", "'a b'"]
    plain = parse_device("ssh://jetson.local").run(["true"]).stdout.decode().splitlines()
    assert plain[-3:] == ["--", "jetson.local", "true"]
    assert not {"-p", "-l", "-F"} & set(plain)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400", "9" * 400])
def test_a_number_that_is_not_finite_is_no_answer(number: str) -> None:
    content = f'{{"latency": {{"speedup": {number}}}}}'.encode()
    with pytest.raises(InputRejectedError, match="not JSON of finite numbers"):
        read_record(content, "0" * 64)
