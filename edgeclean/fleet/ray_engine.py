"""Jobs on a Ray cluster: inputs and answers go through its object store, no file system is shared.

A task gets the files of its network and the finished stages that it needs as bytes, works in a
temporary folder of its node, and gives back new stages and, of a cell, the files of the bundle. The
driver keeps the stages in its own cache and puts the bundle in place: a driver that is killed and
started again goes on from there, and a node may go at any time, for nothing lies on it alone.

Tries are counted by the schedule, not by Ray: a task whose node or worker is gone is begun again.
Without an address, one node is started on this machine; it listens on loopback alone, has no
dashboard and tells nobody of its use.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from threading import current_thread, main_thread
from typing import Any

from edgeclean.bundle.bundle import hold_output
from edgeclean.errors import EdgecleanError, InputRejectedError, ToolchainError
from edgeclean.files.atomic import replace_folder
from edgeclean.files.reading import is_folder, is_hollow, open_regular
from edgeclean.files.store import Store
from edgeclean.files.temporary import temporary_folder
from edgeclean.files.text import first_line, one_line
from edgeclean.fleet.inputs import pictures_of
from edgeclean.fleet.jobs import Answer, Done, Failed, Job, Lost
from edgeclean.fleet.local_engine import JOB_BYTES
from edgeclean.load.hub_folder import files_of
from edgeclean.runner import own_code

OLDEST = (2, 52)  # an older one knows no token, and lets in whoever asks
ONE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
AHEAD = 2  # tasks in flight for each processor of the cluster: it grows by what waits
FEWEST_IN_FLIGHT = 8
WAIT_SECONDS = 1.0
# What Ray says where a node took the task along, or the answer that had not been fetched yet.
GONE = ("NodeDiedError", "LocalRayletDiedError", "ObjectLostError")
STARTS = 3
MOST_TRAVELLING = 8 * 2**30  # bytes of a file
ROOT = "inputs"  # in a task's folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Luggage:
    """What travels to a task beside the job.

    Attributes:
        files: contents by place below the inputs' folder.
        kept: finished stages by key.
        code: the driver's `runner.own_code`; another edgeclean would make other bytes.
    """

    files: Mapping[str, bytes]
    kept: Mapping[str, bytes]
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """What comes back from a task.

    Attributes:
        answer: as `work.run_job` gave it.
        kept: new finished stages by key.
        bundle: of a cell that is done, the files of its bundle by name.
    """

    answer: Answer
    kept: Mapping[str, bytes]
    bundle: Mapping[str, bytes]


class RayEngine:
    """An engine on a Ray cluster; see `engines.Engine`."""

    name = "ray"
    careful = False

    def __init__(
        self, *, address: str | None, jobs: int | None, threads: int = 1, gpu: bool = False
    ) -> None:
        """Connect to nothing yet: that is for the first job.

        Args:
            address: of a cluster that runs; None for one node of this machine.
            jobs: how many tasks are in flight together; None for what the cluster can do.
            threads: the most processors that a task asks for.
            gpu: whether a task needs a GPU of its own.

        Raises:
            ToolchainError: Ray is not installed, or older than its tokens.
        """
        self._ray = _import_ray(alone=address is None)
        self._address, self._jobs, self._threads, self._gpu = address, jobs, threads, gpu
        self._own = ExitStack()  # of the cluster that is started here
        self._flights: dict[Any, tuple[str, Job]] = {}
        self._ended: list[tuple[str, Answer]] = []
        self._connected = False
        self._remote: Any = None

    def room(self) -> int:
        """Return what was asked, or twice the processors that the cluster has now.

        Raises:
            ToolchainError: the cluster cannot be reached, or none can be started here.
        """
        if self._remote is None:
            self._connect()
        if self._jobs is not None:
            return self._jobs
        cores = int(self._ray.cluster_resources().get("CPU", 1))
        return max(FEWEST_IN_FLIGHT, AHEAD * cores)

    def submit(self, name: str, job: Job) -> None:
        """Begin a job on any node with the processors that it asks for."""
        try:
            luggage, sent = pack(job)
        except EdgecleanError as error:
            self._ended.append((name, _failed(error)))
            return
        task = self._remote.options(
            name=name,
            num_cpus=job.threads,
            num_gpus=1 if self._gpu else 0,
            memory=JOB_BYTES,
            max_retries=0,
        )
        self._flights[task.remote(sent, luggage)] = name, job

    def wait(self) -> Sequence[tuple[str, Answer]]:
        """Wait until a job is over; bundles are in place and stages kept when it says so."""
        while not self._ended:
            with _undisturbed():
                ready, _ = self._ray.wait(
                    list(self._flights), num_returns=1, timeout=WAIT_SECONDS, fetch_local=True
                )
            for flight in ready:
                name, job = self._flights.pop(flight)
                self._ended.append((name, self._answer(flight, job)))
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Cancel what is in flight, and leave the cluster; end it where it was started here."""
        for flight in self._flights:
            self._ray.cancel(flight, force=True)
        self._flights.clear()
        if self._connected:
            self._ray.shutdown()
        self._own.close()

    def _connect(self) -> None:
        """Connect or start; a busy machine may need more than one try for what Ray gives 30 s."""
        address, threads = self._address, self._threads
        asked: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is not None:
            asked["address"] = address
        else:  # its sockets have names of at most 107 characters: the folder's is short
            folder = self._own.enter_context(temporary_folder("ec-"))
            cores = max(threads, os.cpu_count() or 1)
            asked["num_cpus"] = cores if self._jobs is None else self._jobs * threads
            asked |= {"include_dashboard": False, "_temp_dir": str(folder)}
        for left in reversed(range(STARTS)):
            try:
                with _undisturbed():
                    self._ray.init(**asked)
                self._connected, self._remote = True, self._ray.remote(_on_a_node)
                return
            except Exception as error:  # noqa: BLE001 - Ray raises Exception itself
                self._ray.shutdown()
                if not left:
                    where = "can be started here" if address is None else f"answers at {address}"
                    line = one_line(f"no Ray cluster {where} ({first_line(error)})")
                    raise ToolchainError(line) from None

    def _answer(self, flight: Any, job: Job) -> Answer:
        """Fetch what came back, keep it, and put a bundle in place."""
        try:
            with _undisturbed():
                came: Return = self._ray.get(flight)
        except self._ray.exceptions.RayTaskError as defect:  # edgeclean may not be there
            line = first_line(defect.cause or defect)
            return Failed(kind="defect", message=f"a defect, or no edgeclean: {line}", exit_code=1)
        except self._ray.exceptions.RayError as error:
            told = type(error).__name__
            gone = isinstance(error, tuple(getattr(self._ray.exceptions, one) for one in GONE))
            return Lost(reason=f"or its node is gone ({told})", with_its_node=gone)
        store = Store(job.cache, lambda _line: None)
        for key, contents in came.kept.items():
            store.put(key, contents)
        answer = came.answer
        if not isinstance(answer, Done):
            return answer
        if job.output is not None:
            try:
                with hold_output(job.output) as held:
                    replace_folder(held, came.bundle)
            except EdgecleanError as error:
                return _failed(error)
        return replace(answer, kept=tuple(dict.fromkeys((*job.kept, *came.kept))))


def pack(job: Job) -> tuple[Luggage, Job]:
    """Return what travels with a job, and the job with its paths as they are on the other side.

    Raises:
        InputRejectedError: a file cannot be read.
    """
    store = Store(job.cache, lambda _line: None)
    kept = {key: store.get(key) for key in job.kept}
    files: dict[str, bytes] = {}
    code = [one for one in job.beside if one.suffix == ".py"]
    folder = job.checkpoint if is_folder(job.checkpoint) else job.checkpoint.parent
    for path in (*files_of(job.checkpoint), *(one for one in job.beside if one not in code)):
        files[_below("checkpoint", path, folder)] = _read(path)
    checkpoint = Path(ROOT, "checkpoint")
    if not is_folder(job.checkpoint):
        checkpoint /= job.checkpoint.name
    model = None
    if job.model is not None:
        model = _packed(files, "model", job.model)
        for path in code:  # which is looked for from the model file
            files[_below("model", path, job.model.parent)] = _read(path)
    evaluate = None if job.evaluate is None else _packed_images(files, job.evaluate)
    sent = replace(
        job,
        checkpoint=checkpoint,
        model=model,
        evaluate=evaluate,
        table=None if job.table is None else _packed(files, "table", job.table),
        beside=(),
        kept=(),
    )
    found = {key: one for key, one in kept.items() if one is not None}
    return Luggage(files=files, kept=found, code=own_code()), sent


def unpacked(job: Job, luggage: Luggage, folder: Path) -> Job:
    """Write the luggage below a folder, and return the job with the paths in it."""
    for name, contents in luggage.files.items():
        place = folder / ROOT / PurePosixPath(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(contents)
    cache = folder / "cache"
    store = Store(cache, lambda _line: None)
    for key, contents in luggage.kept.items():
        store.put(key, contents)
    here = {
        name: folder / path
        for name in ("checkpoint", "model", "evaluate", "table")
        if (path := getattr(job, name)) is not None
    }
    output = None if job.output is None else folder / "bundle"
    return replace(job, cache=cache, output=output, **here)


def _on_a_node(job: Job, luggage: Luggage) -> Return:
    """Do a job on a node, in a folder that is gone when it is over."""
    from edgeclean.fleet.work import run_job

    if luggage.code != own_code():
        other = ToolchainError("a node has another edgeclean than the driver; install the same one")
        return Return(answer=_failed(other), kept={}, bundle={})
    with temporary_folder("edgeclean-") as folder:
        here = unpacked(job, luggage, folder)
        answer = run_job(here)
        if isinstance(answer, Failed):  # whose path would say nothing to the reader
            words = answer.message.replace(f"{folder / ROOT}/checkpoint/", "")
            answer = replace(answer, message=words.replace(f"{folder / ROOT}/", ""))
        store = Store(here.cache, lambda _line: None)
        made = {one.stem for one in here.cache.glob("*.kept")} - set(luggage.kept)
        kept = {key: contents for key in sorted(made) if (contents := store.get(key)) is not None}
        bundle: dict[str, bytes] = {}
        if here.output is not None and isinstance(answer, Done):
            paths = (one for one in sorted(here.output.rglob("*")) if one.is_file())
            bundle = {one.relative_to(here.output).as_posix(): one.read_bytes() for one in paths}
        return Return(answer=answer, kept=kept, bundle=bundle)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let SIGTERM and SIGHUP wait until a call of Ray is over; in another thread they are nobody's.

    What a handler raises comes out of Ray's native code as `SystemError`. Ray's own handlers of
    SIGTERM, which it sets when it starts, end the process by `SystemExit` with the signal's number,
    and later by an abort that looks like a crash.
    """
    if current_thread() is not main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda got, _frame: came.append(got))
        for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    except SystemExit as ended:
        if ended.code != signal.SIGTERM:
            raise
        came.append(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _import_ray(*, alone: bool) -> Any:
    """Import Ray, which is told by variables alone what it reads when it is imported.

    Alone, it takes 127.0.0.1 for its address, as on systems where it is for one machine; else its
    ports are open to others. Whoever talks to it has to know a token, which is made up here: Ray's
    own would stay in the home folder.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if alone:
        os.environ[ONE_MACHINE] = "0"
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        ray = import_module("ray")
    except ImportError:
        raise ToolchainError(
            "the engine ray needs Ray: pip install 'edgeclean[ray]', or take --engine local"
        ) from None
    if tuple(map(int, ray.__version__.split(".")[:2])) < OLDEST:
        raise ToolchainError(
            f"Ray {ray.__version__} asks nobody for a token; the engine ray needs "
            f"{OLDEST[0]}.{OLDEST[1]} or later: pip install 'edgeclean[ray]'"
        )
    return ray


def _packed(files: dict[str, bytes], part: str, path: Path) -> Path:
    files[f"{part}/{path.name}"] = _read(path)
    return Path(ROOT, part, path.name)


def _packed_images(files: dict[str, bytes], images: Path) -> Path:
    if not is_folder(images):
        return _packed(files, "images", images)
    for path in pictures_of(images):
        files[_below("images", path, images)] = _read(path)
    return Path(ROOT, "images")


def _below(part: str, path: Path, folder: Path) -> str:
    """Return the place of a file that lies in a folder; by its name alone where it does not."""
    inside = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
    return f"{part}/{inside.as_posix()}"


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > MOST_TRAVELLING or is_hollow(stream):
                raise InputRejectedError(
                    f"{path} has {size} bytes, and what travels to a node has {MOST_TRAVELLING} at "
                    "most and is no hole; take --engine local"
                )
            return stream.read(size)
    except OSError as error:
        raise InputRejectedError(f"{path}: cannot be read ({error.strerror})") from None


def _failed(error: EdgecleanError) -> Failed:
    return Failed(
        kind=type(error).__name__, message=one_line(str(error)), exit_code=error.exit_code
    )
