"""A headless Chromium of one's own, and what it says of a page."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT_SECONDS = 60
# Chromium reads commands from file descriptor 3 and answers on 4, which `subprocess` cannot give.
LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Tab:
    """One empty page of a running browser; commands and events as the DevTools protocol has them.

    ``events`` are all that came, in order; `Log`, `Runtime` and `Network` are told from the start.
    """

    def __init__(self, reads: int, writes: int) -> None:
        self._reads, self._writes, self._rest = reads, writes, b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Log", "Network", "Page", "Runtime"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: object) -> dict[str, Any]:
        """Its result; an error of the browser is one of the test."""
        number = next(self._numbers)
        asked = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            asked["sessionId"] = self._session
        os.write(self._writes, json.dumps(asked).encode() + b"\0")
        while (said := self._next()).get("id") != number:
            self.events.append(said)
        assert "error" not in said, said
        return dict(said["result"])

    def show(self, address: str) -> None:
        """Go there and wait until everything has loaded and was laid out."""
        before = len(self.events)
        went = self("Page.navigate", url=address)
        assert "errorText" not in went, went
        while not any(one["method"] == "Page.loadEventFired" for one in self.events[before:]):
            self.events.append(self._next())
        self.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def value(self, script: str) -> Any:
        """What a script says, in a world beside the page's: its policy forbids scripts there."""
        frame = self("Page.getFrameTree")["frameTree"]["frame"]["id"]
        world = self("Page.createIsolatedWorld", frameId=frame)["executionContextId"]
        said = self(
            "Runtime.evaluate",
            **{"expression": script, "contextId": world},
            **{"returnByValue": True, "awaitPromise": True},
        )
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def picture(self) -> bytes:
        """The whole page as PNG, however long it is."""
        whole = self("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(whole["data"])

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + WAIT_SECONDS
        while b"\0" not in self._rest:
            left = until - time.monotonic()
            ready, _, _ = select.select([self._reads], [], [], max(left, 0))
            assert ready, f"the browser said nothing for {WAIT_SECONDS} seconds"
            read = os.read(self._reads, 1 << 20)
            assert read, "the browser ended"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))


@contextmanager
def browser(chromium: Path, folder: Path) -> Iterator[Tab]:
    """Start it with an empty profile in ``folder``, and end it."""
    pipes = (*os.pipe(), *os.pipe())
    # Above those that LAUNCH overwrites.
    theirs = [fcntl.fcntl(pipes[one], fcntl.F_DUPFD_CLOEXEC, 10) for one in (0, 3)]
    words = [
        *FLAGS,
        "--hide-scrollbars",
        "--remote-debugging-pipe",
        f"--user-data-dir={folder / 'profile'}",
    ]
    running = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *map(str, theirs), str(chromium), *words],
        pass_fds=theirs,
        env={**os.environ, "HOME": str(folder)},
        stderr=subprocess.DEVNULL,
    )
    for one in (*theirs, pipes[0], pipes[3]):
        os.close(one)
    try:
        tab = Tab(pipes[2], pipes[1])
        yield tab
        tab("Browser.close")
    finally:
        os.close(pipes[1])  # it ends with its pipe
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        os.close(pipes[2])
