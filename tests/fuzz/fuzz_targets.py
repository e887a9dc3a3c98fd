"""One function for each reader of strangers' bytes: it refuses or accepts, and nothing else.

The readers run in this process, without the one that would die for them: what a parser raises that
is no refusal is a defect here, even where the parsing process would have contained it.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fuzz_bundles
from fuzz_bundles import fuzzed_file

from edgeclean.child.inside import mapped_bytes
from edgeclean.compression.settings import read_rank_file
from edgeclean.config import PipelineSettings, read_config, settings_from
from edgeclean.devices.profile_files import read_profile
from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.gates import read_policy
from edgeclean.load.checkpoint import parse_torch, read_networks
from edgeclean.load.limits import MIB, LoadLimits
from edgeclean.load.model_file import read_model_file
from edgeclean.load.onnx.guard import parse_onnx
from edgeclean.load.onnx.importer import convert_checked

SEEDS = Path(__file__).parent / "seeds"
# Beyond what is mapped: the system may well hand out the terabytes that a bomb asks for.
ROOM = 2**30
# Small enough that a bomb within the limits is no find.
LIMITS = LoadLimits(
    file_bytes=16 * MIB, entries=1000, onnx_nodes=200, activations=10**6, macs=10**8
)


def pickle(contents: bytes) -> None:
    """A file of torch.save without an archive."""
    parse_torch(b"\x80" + contents[1:], LIMITS)


def zip(contents: bytes) -> None:
    """A file of torch.save with one."""
    parse_torch(b"PK\x03\x04" + contents[4:], LIMITS)


def safetensors(contents: bytes) -> None:
    """A safetensors file."""
    read_networks(contents, "safetensors", LIMITS)


def onnx(contents: bytes) -> None:
    """An ONNX file: what the parsing process does with it, and what is done with its answer."""
    checked = parse_onnx(contents, LIMITS)
    if checked is not None:
        convert_checked(checked, LIMITS)


def toml(contents: bytes) -> None:
    """Every TOML file that we read, whatever it was meant to be."""
    path = fuzzed_file(contents, ".toml")
    _refused(lambda: read_model_file(path))
    _refused(lambda: settings_from(PipelineSettings, read_config(path)))
    _refused(lambda: read_profile(path))
    _refused(lambda: read_policy(path, {}))
    read_rank_file(path)


TARGETS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one
    for one in (
        *(pickle, zip, safetensors, onnx, toml),
        *(fuzz_bundles.npz, fuzz_bundles.sums, fuzz_bundles.manifest, fuzz_bundles.table),
        *(fuzz_bundles.answer, fuzz_bundles.depfiles),
        *(fuzz_bundles.signature, fuzz_bundles.certificate),
    )
}


def run(name: str, contents: bytes) -> None:
    """One input through one reader.

    Raises:
        Exception: anything but a refusal, which is a defect.
    """
    _refused(lambda: TARGETS[name](contents))


@contextmanager
def limited_memory() -> Iterator[None]:
    """As in the parsing process, a bomb that no guard sees ends in a MemoryError, not the machine.

    The address space is limited while this is open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes() + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _refused(read: Callable[[], object]) -> None:
    try:
        read()
    except (InputRejectedError, UsageError) as error:
        if not str(error):
            raise AssertionError("a refusal without a reason") from error
    except MemoryError:
        pass  # the parsing process says so to the user
