"""One device behind ``ssh://user@host:port``, reached with the system's own OpenSSH client.

What is run there is made of fixed words and of names that were checked letter by letter; nothing of
a host name, user name or path reaches a shell unquoted, and ``--`` ends ssh's own options.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edgeclean.errors import ToolchainError, UsageError

CONNECTION_LOST = 255  # ssh's own exit code, as opposed to the remote command's
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\]")
OPTIONS = (
    "BatchMode=yes",  # never ask: a password prompt would hang a build
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ClearAllForwardings=yes",
)


class ConnectionLostError(ToolchainError):
    """The device cannot be reached, or the connection broke; what was done there is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where to connect.

    Attributes:
        host: name or address.
        user: None for the one that the ssh configuration says.
        port: None for the one that the ssh configuration says.
        configuration: an ssh configuration file in place of the user's own.
    """

    host: str
    user: str | None = None
    port: int | None = None
    configuration: Path | None = None

    def run(
        self,
        words: Sequence[str],
        *,
        stdin: bytes | None = None,
        told: Callable[[str], None] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run one command there and wait for it.

        Args:
            words: the command, quoted here for the remote shell.
            stdin: what it reads; nothing if None.
            told: called with each line that it writes to stderr, as it comes.

        Returns:
            Its exit code, stdout and stderr, whatever they are.

        Raises:
            ConnectionLostError: ssh itself failed.
            ToolchainError: there is no ssh here.
        """
        finished = _talk([*self._client(), shlex.join(words)], stdin, told)
        if finished.returncode == CONNECTION_LOST:
            lines = finished.stderr.decode("utf-8", "replace").strip().splitlines()
            reason = lines[-1][:200] if lines else "no reason was given"
            raise ConnectionLostError(
                f"the connection to {self.host} failed or broke ({reason}); what was done there is "
                "kept: run the same command again. A new host must first be accepted by hand: "
                f"ssh {self.host}"
            )
        return finished

    def _client(self) -> list[str]:
        ssh = shutil.which("ssh")
        if ssh is None:
            raise ToolchainError("ssh is not installed here; install OpenSSH's client")
        words = [ssh, "-T"]
        for option in OPTIONS:
            words += ["-o", option]
        if self.configuration is not None:
            words += ["-F", str(self.configuration)]
        if self.port is not None:
            words += ["-p", str(self.port)]
        if self.user is not None:
            words += ["-l", self.user]
        return [*words, "--", self.host.strip("[]")]


def parse_device(url: str, *, configuration: Path | None = None) -> Device:
    """The device that ``ssh://[user@]host[:port]`` names.

    Raises:
        UsageError: it is not of this form, or holds a letter that no user or host name has.
    """
    form = f"{url[:100]!r} was given; a device is ssh://user@host or ssh://user@host:port"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError(form) from None
    if parts.scheme != "ssh" or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise UsageError(form)
    place = parts.netloc
    user, at, rest = place.rpartition("@")
    host = rest if rest.endswith("]") or port is None else rest.rpartition(":")[0]
    if HOST.fullmatch(host) is None or (at and NAME.fullmatch(user) is None):
        raise UsageError(form)
    if port == 0:
        raise UsageError(form)
    return Device(host=host, user=user or None, port=port, configuration=configuration)


def _talk(
    words: list[str], stdin: bytes | None, told: Callable[[str], None] | None
) -> subprocess.CompletedProcess[bytes]:
    """Run a local program; its stderr is handed on line by line."""
    if told is None or stdin is not None:
        return subprocess.run(  # noqa: S603 - fixed words and checked names
            words, input=stdin or b"", capture_output=True, check=False
        )
    with subprocess.Popen(  # noqa: S603 - fixed words and checked names
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as running:
        assert running.stderr is not None  # noqa: S101 - asked for just above
        lines = []
        for line in running.stderr:
            lines.append(line)
            told(line.decode("utf-8", "replace").strip())
        code = running.wait()
    return subprocess.CompletedProcess(words, code, b"", b"".join(lines))
