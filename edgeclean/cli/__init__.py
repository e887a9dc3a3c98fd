"""The command line: it parses, prints and exits; the work is done by the library.

Each module here holds one command (or a few small ones) and imports the library inside it, so
that `edgeclean --help` and completion never load torch.
"""

from __future__ import annotations

import errno
import signal
import sys
from contextvars import Context
from pathlib import Path
from typing import Annotated

import typer

from edgeclean.cli import supervisor
from edgeclean.cli.about import doctor, integrations, parts, targets
from edgeclean.cli.bench import bench
from edgeclean.cli.build_engine import build_engine
from edgeclean.cli.bundle import embed, sign, verify
from edgeclean.cli.command import WRONG_WORDS, Command, interrupted_line, usage_line
from edgeclean.cli.compress import compress
from edgeclean.cli.console import ANSWERED, answer_failure, show_error
from edgeclean.cli.export import export
from edgeclean.cli.fleet import fleet
from edgeclean.cli.inspect import inspect
from edgeclean.cli.latency_table import latency_table
from edgeclean.cli.scan import scan
from edgeclean.cli.streams import safe_streams
from edgeclean.errors import EdgecleanError, EndedBySignalError, NoMemoryError, UsageError
from edgeclean.files.writing import no_lasting_writes
from edgeclean.notes import note_end
from edgeclean.processes import keep_freed_memory
from edgeclean.version import __version__

EXIT_CODES = (
    "Exit codes: 0 done, 1 a defect or crash, 2 usage, 3 input rejected, 4 backdoor suspected, "
    "5 parity or accuracy gate, 6 ratio, latency or size out of reach, 7 toolchain missing, "
    "129 stopped by SIGHUP, 130 by Ctrl-C, 131 by SIGQUIT, 143 by SIGTERM."
)
# Of the system or of a limit on this user: the network is no worse for it, nor is this program.
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)

app = typer.Typer(
    name="edgeclean",
    help="Purify, compress and export an untrusted CNN for an edge device, without training data.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(version: bool) -> bool:
    if version:
        typer.echo(f"edgeclean {__version__}")
        raise typer.Exit
    return version


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


for command in (
    *(compress, fleet, scan, inspect, export, latency_table, build_engine, bench, verify),
    *(sign, embed, integrations, targets, doctor),
):
    app.command(cls=Command)(command)
app.command(cls=Command, hidden=True)(parts)  # the former name of `integrations`


def main() -> None:
    """Entry point: an EdgecleanError is one line and an exit code; a defect keeps its traceback.

    Under ``--json`` stdout holds one document whatever happens: the answer, or what failed. Long
    commands run in a process of their own (`supervisor`). A command begins with a context of its
    own: what one has answered is not what the next one has.
    """
    Context().run(_run, "--json" in sys.argv)


def _run(as_json: bool) -> None:
    try:
        _answered(as_json)
    finally:
        note_end()


def _answered(as_json: bool) -> None:
    with safe_streams():
        try:
            code = _command()
            sys.stdout.flush()
        except EdgecleanError as error:
            supervisor.hear_no_more()
            show_error(error)
            if as_json:
                answer_failure(type(error).__name__, str(error), error.exit_code, **error.facts)
            code = error.exit_code
        except Exception as defect:
            if as_json:
                message = f"{type(defect).__name__}: {defect}"
                answer_failure("defect", message, EdgecleanError.exit_code)
            raise
    sys.exit(code)


def _command() -> int:
    """Do what the words say; the exit code of what is no error."""
    _refuse_no_folder()
    try:
        with no_lasting_writes():
            if supervisor.is_split(sys.argv[1:]):
                _split()
                keep_freed_memory()
            code = app(prog_name="edgeclean", standalone_mode=False)
    except WRONG_WORDS as wrong:
        if not sys.argv[1:]:  # then it is the help
            wrong.show()
            return UsageError.exit_code
        raise UsageError(usage_line(wrong)) from None
    except MemoryError:
        raise _no_memory() from None
    except OSError as error:
        if error.errno not in EXHAUSTED:
            raise
        raise _exhausted(error) from None
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    if code == 128 + signal.SIGINT:  # before the command itself had begun
        raise EndedBySignalError(interrupted_line(), exit_code=code, signal="SIGINT")
    return code or 0


def _exhausted(error: OSError) -> EdgecleanError:
    """Return what is raised where the system gives no further process, open file or memory."""
    if error.errno == errno.ENOMEM:
        return _no_memory()
    return UsageError(
        f"the system gives this command no further process or open file ({error.strerror}); end "
        "what else has them, or raise the limit (ulimit -u, ulimit -n), and run it again"
    )


def _no_memory() -> NoMemoryError:
    return NoMemoryError(
        "there is no memory left; end what else takes it, or raise the limit on this process, "
        "and run the same command again"
    )


def _refuse_no_folder() -> None:
    """Refuse to work where the current folder was removed: native libraries end the process there.

    Raises:
        UsageError: it was.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise UsageError(
            f"the current folder cannot be named ({error.strerror}); it was probably removed: "
            "change to one that is there"
        ) from None


def _split() -> None:
    """Go on in a child. What it wrote to stdout is not written again by the parent."""
    try:
        supervisor.split()
    except SystemExit:
        ANSWERED.set(True)
        raise
    except EndedBySignalError as ended:
        ANSWERED.set(bool(ended.facts.pop("answered")))
        raise
