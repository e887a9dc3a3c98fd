"""A real sshd on loopback, with keys and a home folder of its own: the fixture ``server``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from programs import Program


@dataclass(frozen=True)
class Loopback:
    """A running server.

    ``home`` is where remote commands begin, and ``tools`` the first folder on their path.
    """

    url: str
    configuration: Path
    home: Path
    tools: Path
    pid: int
    ps: Path

    def break_connections(self) -> None:
        """Kill the processes that serve a connection, and leave the listener."""
        for child in self._children(self.pid):
            os.kill(child, signal.SIGKILL)

    def connections(self) -> int:
        return len(self._children(self.pid))

    def _children(self, parent: int) -> list[int]:
        found = subprocess.run(
            [str(self.ps), "-o", "pid=", "--ppid", str(parent)],
            capture_output=True,
            text=True,
            check=False,
        )
        direct = [int(one) for one in found.stdout.split()]
        return [*direct, *(below for one in direct for below in self._sshd_below(one))]

    def _sshd_below(self, parent: int) -> list[int]:
        found = subprocess.run(
            [str(self.ps), "-o", "pid=,comm=", "--ppid", str(parent)],
            capture_output=True,
            text=True,
            check=False,
        )
        rows = [line.split(None, 1) for line in found.stdout.splitlines()]
        return [int(pid) for pid, name in rows if name.startswith("sshd")]


@pytest.fixture
def server(tmp_path: Path, program: Program) -> Iterator[Loopback]:
    programs = {name: program(name) for name in ("sshd", "ssh", "ssh-keygen", "ps")}
    if os.geteuid() != 0:
        pytest.skip("sshd gives a session of its own to root alone, and this is another user")
    with loopback(tmp_path / "d", programs) as running:
        yield running


@contextmanager
def loopback(folder: Path, programs: dict[str, Path]) -> Iterator[Loopback]:
    """Start a server in ``folder`` and stop it at the end."""
    home, tools = folder / "home", folder / "tools"
    for each in (home, tools):
        each.mkdir(parents=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host_key", "user_key"):
        words = ["-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run([str(programs["ssh-keygen"]), *words], check=True, stdin=subprocess.DEVNULL)
    port = _free_port()
    entry = folder / "enter.sh"
    path = f"{tools}:{Path(sys.executable).parent}:/usr/bin:/bin"  # a device has a python3
    entry.write_text(
        f'cd {home} && export HOME={home} PATH={path}\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\n"
        f"AuthorizedKeysFile {folder}/user_key.pub\nPidFile none\nStrictModes no\nUsePAM no\n"
        f"PasswordAuthentication no\nPermitRootLogin yes\nForceCommand sh {entry}\n"
    )
    public = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(public)}\n")
    configuration = folder / "ssh_config"
    configuration.write_text(
        f"IdentityFile {folder}/user_key\nIdentitiesOnly yes\nStrictHostKeyChecking yes\n"
        f"UserKnownHostsFile {folder}/known_hosts\n"
    )
    server = subprocess.Popen(
        [str(programs["sshd"]), "-D", "-e", "-f", str(folder / "sshd_config")],
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port)
        yield Loopback(
            f"ssh://root@127.0.0.1:{port}", configuration, home, tools, server.pid, programs["ps"]
        )
    finally:
        server.terminate()
        server.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("sshd did not start")
