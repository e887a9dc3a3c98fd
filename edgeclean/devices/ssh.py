"""Run commands on a device at ``ssh://user@host:port`` with the system's own OpenSSH client.

Commands are made of fixed words and of names that were checked letter by letter; nothing of a host
name, user name or path reaches a shell unquoted, and ``--`` ends ssh's own options.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edgeclean.devices.exchange import AnswerLimits, Exchange, Log
from edgeclean.devices.exchange import ConnectionLostError as ConnectionLostError
from edgeclean.errors import ToolchainError, UsageError
from edgeclean.files.reading import open_regular

CONNECTION_LOST = 255  # ssh's own exit code, as opposed to the remote command's
UNKNOWN_KEY, CHANGED_KEY = "Host key verification failed", "IDENTIFICATION HAS CHANGED"  # of ssh
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\]")
OPTIONS = (
    "BatchMode=yes",  # never ask: a password prompt would hang a build
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ClearAllForwardings=yes",
)


_DEFAULT_LIMITS = AnswerLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that ssh connects to.

    Attributes:
        host: name or address.
        user: user name; None for the one of the ssh configuration.
        port: port; None for the one of the ssh configuration.
        configuration: ssh configuration file; None for the user's own.
    """

    host: str
    user: str | None = None
    port: int | None = None
    configuration: Path | None = None

    def run(
        self,
        words: Sequence[str],
        *,
        stdin: bytes = b"",
        log: Log | None = None,
        limits: AnswerLimits = _DEFAULT_LIMITS,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run one command on the device and wait for it.

        Args:
            words: the command's words, which are quoted here for the remote shell.
            stdin: bytes that the command reads.
            log: called with each line that the command writes to stderr, as it comes.
            limits: the most that is taken from the device, whatever it sends.

        Returns:
            The exit code, stdout and stderr, whatever they are.

        Raises:
            ConnectionLostError: ssh itself failed, or the time is over.
            InputRejectedError: the device sends more than the limits.
            ToolchainError: there is no ssh here.
        """
        exchange = Exchange([*self._client(), shlex.join(words)], self.host, limits, log)
        finished = exchange.run(stdin)
        if finished.returncode == CONNECTION_LOST:
            raise self._lost(finished.stderr.decode("utf-8", "replace").strip())
        return finished

    def _lost(self, said: str) -> ConnectionLostError:
        """Return what is raised where ssh itself failed."""
        reason = (said.splitlines() or ["no reason was given"])[-1][:200]
        if CHANGED_KEY in said:
            return ConnectionLostError(
                f"{self.host} has another host key than the one that is known: it was installed "
                "anew, or somebody else answers in its place. Ask whoever runs it, and only then "
                f"remove the old key (ssh-keygen -R) and accept the new one: ssh {self._by_hand}"
            )
        way = "A new host must first be accepted by hand: " if UNKNOWN_KEY in said else "By hand: "
        return ConnectionLostError(
            f"the connection to {self.host} failed or broke ({reason}); what was done there is "
            f"kept: run the same command again. {way}ssh {self._by_hand}"
        )

    @property
    def _by_hand(self) -> str:
        """What a person types after ``ssh`` to reach the same account."""
        words = [] if self.configuration is None else ["-F", str(self.configuration)]
        words += [] if self.port is None else ["-p", str(self.port)]
        host = self.host.strip("[]")
        return shlex.join([*words, host if self.user is None else f"{self.user}@{host}"])

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
    """Return the device that ``ssh://[user@]host[:port]`` names.

    Raises:
        UsageError: the URL has another shape, or a letter that no user or host name has.
    """
    refusal = f"{url[:100]!r} was given; a device is ssh://user@host or ssh://user@host:port"
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError:
        raise UsageError(refusal) from None
    if split.scheme != "ssh" or split.path not in ("", "/") or split.query or split.fragment:
        raise UsageError(refusal)
    user, at, rest = split.netloc.rpartition("@")
    host = rest if rest.endswith("]") or port is None else rest.rpartition(":")[0]
    if HOST.fullmatch(host) is None or (at and NAME.fullmatch(user) is None):
        raise UsageError(refusal)
    if port == 0:
        raise UsageError(refusal)
    if configuration is not None:
        try:
            open_regular(configuration).close()  # ssh would wait for a pipe
        except OSError as error:
            raise UsageError(
                f"--ssh-config {configuration} cannot be read ({error.strerror})"
            ) from None
    return Device(host=host, user=user or None, port=port, configuration=configuration)
