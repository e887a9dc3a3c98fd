"""Every mistake has its exit code, and a line that says what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Terminal
from small_checkpoint import OPTIONS

from edgeclean import cli
from edgeclean.cli.caches import stage_cache
from edgeclean.cli.console import ANSWERED, Reporter
from edgeclean.errors import (
    AccuracyGateError,
    BackdoorSuspectedError,
    BudgetError,
    EdgecleanError,
    InputRejectedError,
    OutputInUseError,
    ParityError,
    RatioError,
    ToolchainError,
    UsageError,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError, 2),
        (OutputInUseError, 2),
        (InputRejectedError, 3),
        (BackdoorSuspectedError, 4),
        (ParityError, 5),
        (AccuracyGateError, 5),
        (BudgetError, 6),
        (RatioError, 6),
        (ToolchainError, 7),
    ],
)
def test_every_error_has_its_exit_code_and_one_line(
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    error: type[EdgecleanError],
    code: int,
) -> None:
    def fail(**_: object) -> None:
        raise error("one\ntwo \x1b[31m[red]three")

    monkeypatch.setattr(cli, "app", fail)
    said = terminal()
    assert said == (code, "", "error: one two \\x1b[31m[red]three\n")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--classes", "0"),
        ("--classes", "9" * 6000),
        ("--classes", "ten"),
        ("--input-shape", "3x" + "9" * 6000 + "x9"),
        ("--mean", "0.5"),
        ("--mean", "7," * 6000 + "x"),
        ("--std", "0,1,1"),
    ],
)
@pytest.mark.parametrize("with_file", [False, True])
def test_a_bad_option_is_named_and_cut(
    terminal: Terminal, tmp_path: Path, option: str, value: str, with_file: bool
) -> None:
    words: list[object] = [*OPTIONS]
    if with_file:
        words = ["--model", tmp_path / "model.toml"]
        (tmp_path / "model.toml").write_text(
            'architecture = "resnet20"\ninput-shape = [3, 32, 32]\nclasses = 10\n'
            "mean = [0, 0, 0]\nstd = [1, 1, 1]\n"
        )
    said = terminal("scan", tmp_path / "x.pth", *words, option, value)
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith(f"error: {option} ")
    assert len(said.err) < 400 + len(str(tmp_path))


def test_a_defect_keeps_its_traceback() -> None:
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            "from edgeclean import cli\n"
            "def fail(): raise RuntimeError('ours')\n"
            "cli.app.command('fail')(fail)\n"
            "cli.main()",
            "fail",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert "Traceback" in finished.stderr
    assert "RuntimeError: ours" in finished.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["compress"], 2, "Missing argument"),
        (["compress", "x.pth", "--ration", "2"], 2, "No such option"),
        (["nonsense"], 2, "No such command"),
        (["compress", "x.pth", "-o", "b"], 2, "give --arch, --input-shape, --classes"),
        (["compress", "x.pth", *OPTIONS, "-o", "b"], 3, "x.pth: cannot be read"),
        (
            ["compress", "x.pth", *OPTIONS, "-o", "b", "--ratio", "0.5"],
            2,
            "ratio is 0.5; it must be",
        ),
        (["compress", "x.pth", *OPTIONS, "-o", "b", "--target", "orin"], 2, "did you mean"),
        (
            ["compress", "x.pth", *OPTIONS, "-o", "b", "--purify", "clean-compact"],
            3,
            "x.pth: cannot be read",
        ),
        (
            ["compress", "x.pth", *OPTIONS, "-o", "b", "--ranks-file", "no.toml"],
            2,
            "no.toml: cannot",
        ),
        (
            ["compress", "x.pth", *OPTIONS, "-o", "b", "--purify", "hard"],
            2,
            "guided, clean-compact, none",
        ),
        (["compress", "x.pth", *OPTIONS, "-o", "b", "--config", "no.toml"], 2, "no.toml: cannot"),
        (
            ["compress", "x.pth", *OPTIONS, "-o", "b", "--target", "tx2", "--opset", "17"],
            2,
            "opset",
        ),
        (["scan", "x.pth", *OPTIONS], 3, "x.pth: cannot be read"),
        (["inspect", "x.pth", *OPTIONS], 3, "x.pth: cannot be read"),
        (["export", "x.pth", *OPTIONS, "-o", "b.onnx"], 3, "x.pth: cannot be read"),
        (["compress", "x.pth", *OPTIONS, "-o", "b", "--max-size", "much"], 2, "such as 2 MiB"),
        (["compress", "x.pth", *OPTIONS, "-o", "b", "--policy", "no.toml"], 2, "no.toml: cannot"),
        (["compress", "x.pth", *OPTIONS, "-o", "b", "--evaluate", "no"], 3, "does not exist"),
        (
            ["compress", "x.pth", *OPTIONS, "-o", "b", "--max-accuracy-drop", "1"],
            2,
            "give --evaluate",
        ),
        (["compress", "x.pth", *OPTIONS, "-o", "b", "--depfile", "b/x.d"], 2, "put it beside"),
        (["compress", "x;y.pth", *OPTIONS, "-o", "b", "--depfile", "x.d"], 2, "rename it"),
        (["verify", "."], 3, "SHA256SUMS"),
        (["verify", "no"], 3, "does not exist"),
        (["targets", "toaster"], 2, "not known"),
        (["targets", "--jetpack", "6.1"], 2, "name it, as in `edgeclean targets agx-orin`"),
    ],
)
def test_a_mistake_gets_its_code_and_leaves_nothing(
    terminal: Terminal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = terminal(*words)
    assert said.code == code
    (line,) = [line for line in said.err.splitlines() if not line.endswith(" ...")]
    assert line.startswith("error: ")
    assert message in line
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "kind", "code", "message"),
    [
        (["compress", "x.pth", *OPTIONS, "-o", "b"], "InputRejectedError", 3, "x.pth: cannot"),
        (["compress", "x.pth", "-o", "b"], "UsageError", 2, "give --arch"),
        (["compress", "x.pth", "--ration", "2"], "UsageError", 2, "No such option: --ration"),
        (["targets", "toaster"], "UsageError", 2, "not known"),
        (["integrations", "bazel"], "UsageError", 2, "'bazel' is not one of"),
        (["embed", "no", "-o", "b"], "InputRejectedError", 3, "does not exist"),
        (["embed", "no", "-o", "b", "--form", "s"], "UsageError", 2, "one of c, incbin"),
        (["verify", "no"], "InputRejectedError", 3, "does not exist"),
    ],
)
def test_under_json_an_error_is_a_document_too(
    terminal: Terminal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    kind: str,
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = terminal(*words, "--json")
    error = json.loads(said.out)["error"]
    assert said.code == error["exit_code"] == code
    assert error["kind"] == kind
    assert message in error["message"]
    assert said.err.splitlines()[-1] == f"error: {error['message']}"
    assert list(tmp_path.iterdir()) == []


def test_what_one_command_answered_is_not_what_the_next_one_has(terminal: Terminal) -> None:
    before = ANSWERED.set(True)  # as a caller does who spoke through a reporter in this process
    try:
        said = terminal("verify", "no", "--json")
    finally:
        ANSWERED.reset(before)
    assert json.loads(said.out)["error"]["exit_code"] == said.code


def test_under_json_a_defect_is_told_and_keeps_its_traceback(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["edgeclean", "scan", "--json"])
    with pytest.raises(RuntimeError):
        cli.main()
    error = json.loads(capsys.readouterr().out)["error"]
    assert error == {"kind": "defect", "message": "RuntimeError: ours", "exit_code": 1}


def test_after_an_answer_comes_no_second_document(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        Reporter(as_json=True).answer({"done": True})
        raise BudgetError("late")

    monkeypatch.setattr(cli, "app", fail)
    for _ in range(2):  # and one run's answer is not the next one's
        said = terminal("bench", "--json")
        assert (said.code, json.loads(said.out)) == (6, {"done": True})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cache", "here", "--no-cache"], "give one of them"),
        (["--sign-certificate", "authority.pem"], "give --sign-key as well"),
        (
            ["--sign-key", "no-such-key.pem"],
            "no-such-key.pem: cannot be read",
        ),
    ],
)
def test_options_that_need_or_exclude_each_other(
    terminal: Terminal, network: list[object], words: list[str], said: str
) -> None:
    answer = terminal("compress", *network, "-o", "out", *words)
    assert answer.code == 2
    assert said in answer.err
    assert not Path("out").exists()


def test_a_misspelt_provider_is_answered_by_all_of_them(terminal: Terminal, bundle: Path) -> None:
    answer = terminal("bench", bundle, "--provider", "gpu")
    assert answer.code == 2
    assert "must be one of cpu, cuda, tensorrt, torch-cuda" in answer.err


def test_where_there_is_no_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    for above in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", above)
        assert stage_cache(None, False, print) is None


def test_a_bench_on_a_device_has_its_own_original(terminal: Terminal, bundle: Path) -> None:
    words = ("--device", "ssh://nowhere", "--provider", "cuda")
    answer = terminal("bench", bundle, *words)
    assert answer.code == 2
    assert "leave --against, --provider and --runtime out" in answer.err
    answer = terminal("bench", bundle)
    assert answer.code == 2
    assert "this bundle has no original to compare with" in answer.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trtexec", "/x", "--rounds", "3"], "--rounds and --trtexec: of a device; name one"),
        (["--dla-core", "0"], "--dla-core: of a device; name one with --device, or leave that out"),
        (
            ["--device", "ssh://nowhere", "--seed", "0"],
            "--seed: of a measurement on this machine; leave that out, or --device",
        ),
        (["--min-speedup", "-1"], "--min-speedup is -1; it must be above 0"),
    ],
)
def test_a_bench_ignores_no_option(
    terminal: Terminal, bundle: Path, words: list[str], said: str
) -> None:
    answer = terminal("bench", bundle, *words)
    assert answer.code == 2
    assert said in answer.err


@pytest.mark.parametrize("command", ["scan", "compress"])
def test_without_a_gpu_gpu_is_refused_before_anything_is_loaded(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    missing = tmp_path / "no-such-file.safetensors"
    answer = terminal(command, missing, *OPTIONS, "-o", tmp_path / "out", "--gpu")
    assert answer.code == 7
    assert "PyTorch sees no CUDA device here" in answer.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "line",
    [
        "[purify.unlearn]\nsteps = 0",
        "[purify.unlearn]\nascent_every = 0",
        "[purify.unlearn]\nlearning_rate = -1",
        "[purify]\ngeneral_strength = -5",
        "[finetune]\nphotograph_share = 2",
        "[finetune]\nlearning_rate = nan",
        "[synthesize]\nclass_weight = inf",
        f"[scan]\nsteps = 0x{'f' * 20_000}",
        f"target = 0x{'f' * 20_000}",
        f"[scan]\nsearches = {'[' * 90}{']' * 90}",
        f"{'k' * 100_000} = 1",
    ],
    ids=lambda line: line[:40].replace("\n", " "),
)
def test_settings_that_mean_nothing_end_before_anything_is_loaded(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("e.toml").write_text(f"{line}\n", encoding="utf-8")
    said = terminal("compress", "x.pth", *OPTIONS, "-o", "b", "--config", "e.toml")
    assert said.code == 2
    assert len(said.err.splitlines()) == 1
    assert len(said.err) < 700
    assert line.partition("]\n")[2].partition(" ")[0] in said.err


@pytest.mark.parametrize("as_option", [True, False])
def test_the_old_name_of_a_mode_is_taken_and_told_once(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_option: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("e.toml").write_text('[purify]\nmode = "deck"\n', encoding="utf-8")
    words = ["--purify", "deck"] if as_option else ["--config", "e.toml"]
    said = terminal("compress", "x.pth", *OPTIONS, "-o", "b", *words)
    assert said.code == 3
    told, *_, refused = said.err.splitlines()
    assert "'deck' is called 'clean-compact' now" in told
    assert said.err.count("deck") == 1
    assert "x.pth: cannot be read" in refused
