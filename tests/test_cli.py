from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from report_evidence import scan_report
from small_checkpoint import OPTIONS, quick_config, spec, write_checkpoint

from edgeclean import cli, pipeline
from edgeclean.cli.console import Face
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

COMMANDS = (
    *("compress", "scan", "inspect", "export", "latency-table", "build-engine", "bench"),
    *("verify", "sign", "embed", "parts", "targets", "doctor"),
)
HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "matplotlib", "jinja2", "tensorly")


class Said(NamedTuple):
    code: int
    out: str
    err: str


class Terminal:
    """Runs the real entry point in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("TERM", "dumb")

    def __call__(self, *words: object) -> Said:
        self._monkeypatch.setattr(sys, "argv", ["edgeclean", *map(str, words)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        code = exit_.value.code
        return Said(int(code or 0), *self._capsys.readouterr())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source"))


@pytest.fixture
def network(source: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The checkpoint and what describes it; net.py is looked up in the working folder."""
    monkeypatch.chdir(source.parent)
    return [source, *OPTIONS]


@pytest.fixture(scope="module")
def bundle(source: Path) -> Path:
    """One bundle and the original as ONNX, for all tests that only read."""
    from edgeclean.config import PipelineSettings, read_config, settings_from

    settings = settings_from(PipelineSettings, read_config(quick_config(source.parent)))
    output = source.parent / "bundle"
    written = pipeline.compress(source, spec(), output, settings, code_folder=source.parent)
    (source.parent / "original.onnx").write_bytes(written.outcome.original_model)
    return output


def in_a_child(*code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", *code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
    )


@pytest.mark.parametrize("words", [["--help"], ["compress", "--help"], ["--version"]])
def test_help_is_quick_and_imports_nothing_heavy(words: list[str]) -> None:
    finished = in_a_child(
        "import sys, resource\n"
        "from edgeclean.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as exit:\n    assert not exit.code, exit.code\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('modules', *(m for m in sys.modules if '.' not in m), file=sys.stderr)\n"
        "print('seconds', used.ru_utime + used.ru_stime, file=sys.stderr)",
        *words,
    )
    modules, seconds = finished.stderr.splitlines()[-2:]
    assert not set(HEAVY) & set(modules.split())
    assert float(seconds.split()[1]) < 0.5  # processor time: others may use the machine as well


def test_importing_the_package_imports_nothing() -> None:
    finished = in_a_child("import sys, edgeclean; print(*sys.modules)")
    assert not set(HEAVY) & set(finished.stdout.split())


def test_onnx_runtime_reports_nothing_and_leaves_no_identifier(tmp_path: Path) -> None:
    """Loading it is enough to be counted, unless it was told not to before."""
    from tiny_networks import tiny_network

    from exporters.onnx_exporter import export_onnx

    (tmp_path / "net.onnx").write_bytes(export_onnx(tiny_network()))
    code = (
        "import sys, pathlib\n"
        "from edgeclean.runtime.session import OnnxSession\n"
        "import numpy\n"
        "session = OnnxSession(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "session.predict(numpy.zeros((1, 3, 8, 8), dtype=numpy.float32))\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": str(Path(cli.__file__).parents[2]),
    }
    words = [sys.executable, "-c", code, str(tmp_path / "net.onnx")]
    subprocess.run(words, env=environment, check=True, capture_output=True)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(terminal: Terminal, command: str) -> None:
    said = terminal(command, "--help")
    assert said.code == 0
    assert "--json" in said.out
    assert "--quiet" in said.out


def test_help_lists_every_command_and_the_exit_codes(terminal: Terminal) -> None:
    said = terminal("--help")
    assert all(f"  {command} " in said.out for command in COMMANDS)
    assert "4 backdoor suspected" in " ".join(said.out.split())


def test_the_shell_completes_commands_and_options() -> None:
    for line, expected in (("edgeclean co", "compress"), ("edgeclean compress --ta", "--target")):
        finished = subprocess.run(
            [sys.executable, "-c", "from edgeclean.cli import main; main()"],
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "_EDGECLEAN_COMPLETE": "complete_bash",
                "COMP_WORDS": line,
                "COMP_CWORD": str(len(line.split()) - 1),
            },
        )
        assert expected in finished.stdout.split()


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
        (["compress", "x.pth", *OPTIONS, "-o", "b", "--ratio", "0.5"], 2, "must be 1 or more"),
        (["compress", "x.pth", *OPTIONS, "-o", "b", "--target", "orin"], 2, "did you mean"),
        (
            ["compress", "x.pth", *OPTIONS, "-o", "b", "--purify", "deck"],
            3,
            "x.pth: cannot be read",
        ),
        (
            ["compress", "x.pth", *OPTIONS, "-o", "b", "--ranks-file", "no.toml"],
            2,
            "no.toml: cannot",
        ),
        (["compress", "x.pth", *OPTIONS, "-o", "b", "--purify", "hard"], 2, "guided, deck, none"),
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
        (["compress", "x.pth", *OPTIONS, "-o", "b", "--evaluate", "no"], 3, "not a folder"),
        (
            ["compress", "x.pth", *OPTIONS, "-o", "b", "--max-accuracy-drop", "1"],
            2,
            "give --evaluate",
        ),
        (["compress", "x.pth", *OPTIONS, "-o", "b", "--depfile", "b/x.d"], 2, "put it beside"),
        (["compress", "x;y.pth", *OPTIONS, "-o", "b", "--depfile", "x.d"], 2, "rename it"),
        (["verify", "."], 3, "SHA256SUMS"),
        (["verify", "no"], 3, "not a folder"),
        (["targets", "toaster"], 2, "not known"),
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
    assert message in " ".join(said.err.split())
    assert "Traceback" not in said.err
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "kind", "code", "message"),
    [
        (["compress", "x.pth", *OPTIONS, "-o", "b"], "InputRejectedError", 3, "x.pth: cannot"),
        (["compress", "x.pth", "-o", "b"], "UsageError", 2, "give --arch"),
        (["compress", "x.pth", "--ration", "2"], "UsageError", 2, "stderr says how"),
        (["targets", "toaster"], "UsageError", 2, "not known"),
        (["parts", "bazel"], "UsageError", 2, "stderr says how"),
        (["embed", "no", "-o", "b"], "InputRejectedError", 3, "not a folder"),
        (["embed", "no", "-o", "b", "--form", "s"], "UsageError", 2, "one of c, incbin"),
        (["verify", "no"], "InputRejectedError", 3, "not a folder"),
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
    assert said.err
    assert list(tmp_path.iterdir()) == []


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
        Face(as_json=True).answer({"done": True})
        raise BudgetError("late")

    monkeypatch.setattr(cli, "app", fail)
    for _ in range(2):  # and one run's answer is not the next one's
        said = terminal("bench", "--json")
        assert (said.code, json.loads(said.out)) == (6, {"done": True})


def test_parts_prints_folders_that_are_there(terminal: Terminal) -> None:
    folders = json.loads(terminal("parts", "--json").out)
    for name, file in (
        ("cmake", "Edgeclean.cmake"),
        ("make", "edgeclean.mk"),
        ("yocto", "meta-edgeclean"),
    ):
        assert (Path(folders[name]) / file).exists()
        said = terminal("parts", name, "--quiet")
        assert said == (0, f"{folders[name]}\n", "")  # one line that a build tool can take
    assert "yocto" in terminal("parts").out


def test_parts_are_found_without_anything_heavy() -> None:
    finished = in_a_child(
        "import sys\n"
        "from edgeclean.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "print(*(m for m in sys.modules if '.' not in m), file=sys.stderr)",
        "parts",
        "make",
    )
    assert not set(HEAVY) & set(finished.stderr.split())


def test_embed_writes_into_a_folder_that_holds_other_things(
    terminal: Terminal, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "main.c").write_text("int main;", encoding="utf-8")
    said = terminal("embed", bundle, "-o", tmp_path, "--symbol", "net", "--json")
    document = json.loads(said.out)
    assert said.code == 0
    assert document["bytes"] == (bundle / "model.onnx").stat().st_size
    assert {path.name for path in tmp_path.iterdir()} == {"main.c", "net.c", "net.h"}
    older, newer = ((tmp_path / name).stat().st_mtime_ns for name in ("net.h", "net.c"))
    assert older <= newer  # what edgeclean.mk relies on
    said = terminal("embed", bundle, "-o", tmp_path / "i", "--form", "incbin")
    assert "edgeclean_model.S" in said.out


def test_compress_ends_in_a_table_and_the_reports_path(
    terminal: Terminal, network: list[object], tmp_path: Path
) -> None:
    config = quick_config(tmp_path)
    config.write_text("seed = 9\n" + config.read_text("utf-8"), encoding="utf-8")  # option wins
    output = tmp_path / "build"
    words = ["--config", config, "--ratio", 2, "--seed", 3, "--threads", 1, "--no-cache"]
    words += ["-o", output]
    said = terminal("compress", *network, *words)
    assert said.code == 0
    for row in ("parameters", "MACs", "ONNX file", "latency p50", "parity", "model.onnx"):
        assert row in said.out
    assert "report.html" in said.err.splitlines()[-1]
    assert "Synthesising images ..." in said.err  # no terminal: a line for each stage
    manifest = json.loads((output / "manifest.json").read_text("utf-8"))
    assert manifest["seed"] == manifest["configuration"]["seed"] == 3
    assert manifest["configuration"]["latency"]["threads"] == 1
    assert manifest["configuration"]["ranks"]["ratio"] == 2.0
    assert (output / "report.html").is_file()


def test_json_is_one_document_and_the_rest_is_on_stderr(
    terminal: Terminal, network: list[object], tmp_path: Path
) -> None:
    config = quick_config(tmp_path)
    output = tmp_path / "b"
    said = terminal("compress", *network, "--config", config, "-o", output, "--json")
    document = json.loads(said.out)
    assert document["bundle"] == str(output)
    assert document["size"]["macs"]["original"] >= 2 * document["size"]["macs"]["compressed"]
    assert set(document["files"]) == {path.name for path in output.iterdir()}
    assert "Exporting ..." in said.err
    quiet = terminal("compress", *network, "--config", config, "-o", output, "--quiet")
    assert quiet == (0, "", "")


def test_gates_and_a_depfile_from_the_command_line(
    terminal: Terminal, network: list[object], source: Path, tmp_path: Path
) -> None:
    config, output, place = quick_config(tmp_path), tmp_path / "b", tmp_path / "b.d"
    policy, images = tmp_path / "policy.toml", tmp_path / "images.npz"
    policy.write_text('max-size = "1 MB"\nmax-accuracy-drop = 100\n', encoding="utf-8")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 3, 12, 12), dtype=np.uint8)
    np.savez(images, images=pixels, labels=np.arange(30) % 4)
    words = ["compress", *network, "--config", config, "-o", output, "--policy", policy]
    words += ["--evaluate", images, "--depfile", place]
    said = terminal(*words, "--json")
    assert said.code == 0, said.err
    document = json.loads(said.out)
    assert [gate["gate"] for gate in document["gates"]] == ["max-accuracy-drop", "max-size"]
    assert document["evaluation"]["images"] == 30
    report = json.loads((output / "report.json").read_text("utf-8"))
    assert report["gates"] == document["gates"]
    page = (output / "report.html").read_text("utf-8")
    assert "max-accuracy-drop" in page
    assert "On 30 labelled images" in page
    rule = place.read_text("utf-8").split("\n\n")[0].replace("\\\n", "").splitlines()[0].split()
    expected = [source, "net.py", config, policy, images]
    assert rule == [f"{output / 'model.onnx'}:", *map(str, expected)]

    before = {path.name: path.read_bytes() for path in output.iterdir()}
    place.unlink()
    failed = terminal(*words, "--json", "--max-size", "1 kB")
    error = json.loads(failed.out)["error"]
    assert (failed.code, error["kind"]) == (6, "BudgetError")
    assert [gate["passed"] for gate in error["gates"]] == [True, False]
    assert "at most 1000 was asked" in failed.err
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert not place.exists()


def test_scan_shows_what_it_searched_and_writes_evidence(
    terminal: Terminal,
    network: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def suspicious_scan(*_: object, **__: object) -> object:
        return scan_report()

    monkeypatch.setattr(pipeline, "scan", suspicious_scan)
    output = tmp_path / "evidence"
    words = ["scan", *network, "--config", quick_config(tmp_path)]
    said = terminal(*words, "-o", output)
    assert said.code == 0
    assert "backdoor suspected, target class 2" in said.out
    assert "masked patch" in said.out
    assert "warps & <b>blends</b>" in said.out
    assert {path.name for path in output.iterdir()} == {"scan.json", "trigger-0-class-2.png"}
    again = terminal(*words, "-o", output)
    assert again.code == 2
    assert "not empty" in again.err
    failing = terminal(*words, "--fail-on-backdoor", "--json")
    assert failing.code == 4
    assert json.loads(failing.out)["suspects"][0]["target"] == 2


def test_a_scan_that_finds_nothing_says_by_what(
    terminal: Terminal, network: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind_scan(*_: object, **__: object) -> object:
        return scan_report(suspected=False)

    monkeypatch.setattr(pipeline, "scan", blind_scan)
    config = quick_config(tmp_path)
    said = terminal("scan", *network, "--config", config, "--fail-on-backdoor")
    assert said.code == 0
    assert "no trigger found by masked patch" in said.out
    assert "clean" not in said.out


def test_inspect_lists_layers_and_changes_nothing(
    terminal: Terminal, network: list[object], source: Path
) -> None:
    words = ["--config", quick_config(source.parent), "--ratio", 2]
    before = {path: path.stat().st_mtime_ns for path in source.parent.iterdir()}
    said = terminal("inspect", *network, *words, "--keep", "0")
    assert said.code == 0
    assert "named by --keep" in said.out
    assert "ranks" in said.out
    assert "█" in said.out
    document = json.loads(terminal("inspect", *network, *words, "--json").out)
    assert [row["name"] for row in document["layers"]] == ["0", "3", "6", "11"]
    before_macs = sum(row["macs_before"] for row in document["layers"])
    assert before_macs >= 2 * sum(row["macs_after"] for row in document["layers"])
    assert document["spectra"][0]["before"][0] == 1.0
    assert {path: path.stat().st_mtime_ns for path in source.parent.iterdir()} == before


def test_export_writes_one_file_at_the_opset(
    terminal: Terminal, network: list[object], tmp_path: Path
) -> None:
    from edgeclean.runtime.onnx_check import open_onnx, opset_of

    output = tmp_path / "deep" / "net.onnx"
    said = terminal("export", *network, "-o", output, "--target", "tx2", "--json")
    assert said.code == 0
    assert opset_of(open_onnx(output.read_bytes())) == json.loads(said.out)["opset"] == 13
    assert [path.name for path in output.parent.iterdir()] == ["net.onnx"]
    assert output.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    before = output.read_bytes()
    refused = terminal("export", *network, "-o", output, "--opset", 5)
    assert refused.code == 2
    assert output.read_bytes() == before
    blocked = terminal("export", *network, "-o", output / "in-a-file.onnx")
    assert blocked.code == 2
    assert "cannot write" in blocked.err


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_verify_holds_and_notices_one_bit(terminal: Terminal, bundle: Path, tmp_path: Path) -> None:
    said = terminal("verify", bundle, "--json")
    assert said.code == 0
    assert "model.onnx" in json.loads(said.out)["files"]
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    contents = bytearray((copy / "report.html").read_bytes())
    contents[len(contents) // 2] ^= 1
    (copy / "report.html").write_bytes(contents)
    broken = terminal("verify", copy)
    assert broken.code == 3
    assert "report.html" in broken.err


def test_bench_measures_both_and_keeps_a_budget(terminal: Terminal, bundle: Path) -> None:
    original = bundle.parent / "original.onnx"
    words = ["bench", bundle, "--against", original, "--runs", 8]
    said = terminal(*words, "--json")
    assert said.code == 0
    document = json.loads(said.out)
    assert document["original"]["runs"] == document["compressed"]["runs"] == 8
    table = terminal(*words, "--min-speedup", 1000)
    assert table.code == 6
    assert "speed-up" in table.out
    assert "at least 1000 was asked" in table.err
    wrong = terminal("bench", bundle, "--against", bundle / "manifest.json")
    assert wrong.code == 3


def test_targets_lists_all_and_explains_one(terminal: Terminal) -> None:
    said = terminal("targets")
    assert "jetson" in said.out
    assert "orin-nano" in said.out
    one = terminal("targets", "jetson-nano")
    assert "rank_multiples" in one.out
    facts = json.loads(terminal("targets", "jetson-nano", "--json").out)
    assert facts["opset"] == 13


def test_doctor_says_what_is_missing_and_what_for(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads(terminal("doctor", "--json").out)
    parts = {part["name"]: part for part in document["parts"]}
    assert parts["torch"]["found"]
    assert parts["tensorrt"]["enables"]
    # The package's attribute of this name is the command.
    monkeypatch.setattr(sys.modules["edgeclean.cli.doctor"], "_version", lambda name: None)
    said = terminal("doctor")
    assert said.code == 7
    assert "MISSING, needed" in said.out
    assert "torch" in said.err


def test_bars_are_drawn_on_a_terminal_and_hostile_words_are_not_obeyed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Face().progress() as progress:
        progress("layer [bold]x[/bold]\x1b]0;title\x07", 0, 3)
        progress("layer [bold]x[/bold]\x1b]0;title\x07", 3, 3)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "[bold]x[/bold]" in shown
    assert "\x1b]0;" not in shown


def test_a_stage_is_one_bar_whatever_it_does_at_the_moment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Face().progress() as progress:
        for description, done in (("Scan: a", 0), ("Scan: b", 1), ("Scan", 2), ("Scan: c", 0)):
            progress(description, done, 2)
    lines = capsys.readouterr().err.splitlines()
    final = [line for line in lines if "Scan" in line][-2:]
    assert ["Scan" in final[0], "2/2" in final[0]] == [True, True]
    assert ["Scan: c" in final[1], "0/2" in final[1]] == [True, True]


def test_without_a_terminal_a_stage_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Face().progress() as progress:
        for description, done in (("Scan: a", 0), ("Scan: a", 1), ("Scan: b", 1), ("Scan", 2)):
            progress(description, done, 2)
    assert capsys.readouterr().err == "Scan: a ...\nScan: b ...\n"


def test_quiet_draws_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    face = Face(quiet=True)
    with face.progress() as progress:
        progress("x", 0, 1)
    face.say("y")
    face.answer({"z": 1})
    assert capsys.readouterr() == ("", "")
