"""Help, completion and imports: what a newcomer meets first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import HEAVY, Terminal, in_a_child

from edgeclean import cli

COMMANDS = (
    *("compress", "scan", "inspect", "export", "latency-table", "build-engine", "bench"),
    *("verify", "sign", "embed", "integrations", "targets", "doctor"),
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


def test_no_summary_of_a_command_is_cut_on_a_narrow_terminal() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "edgeclean", "--help"],
        env={**os.environ, "COLUMNS": "80", "TERMINAL_WIDTH": "80"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    words = " ".join(shown.split())
    assert max(len(line) for line in shown.splitlines()) <= 80
    for command in COMMANDS:
        function = getattr(cli, command.replace("-", "_"))
        first = function.__doc__.partition("\n\n")[0]
        assert f"{command} {' '.join(first.split())}" in words


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
        "from exporters.session import OnnxSession\n"
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
