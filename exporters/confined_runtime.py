"""What the exporters of all runtimes share that work in a confined process (`exporters.confined`).

A runtime has an exporter, which knows its name and what it takes, and in `exporters.engines` an
engine, which is imported in the confined process alone and calls the runtime.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeclean.child.inside import ChildLimits
from edgeclean.child.parcel import Parcel, untrusted_answer
from edgeclean.environment import installed_version
from edgeclean.errors import InputRejectedError, ToolchainError, UsageError
from edgeclean.load.onnx.graph import image_input
from edgeclean.networks.state import JsonValue, Network
from edgeclean.settings import Settings, setting
from exporters.confined import DEFAULT_LIMITS, run_confined
from exporters.engines.tasks import IMAGES, MODEL
from exporters.onnx_check import open_onnx

CONVERT = "exporters.engines.tasks:convert_task"
RUN = "exporters.engines.tasks:run_task"
Version = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSettings(Settings):
    """How a runtime is to hold and compute a network.

    Attributes:
        precision: fp32; fp16, which the runtime's converter makes of a float32 file; or int8, of a
            file with QuantizeLinear and DequantizeLinear; bf16, which none here takes.
        threads: that it computes with.
    """

    precision: str = setting("fp32", one_of=("fp32", "fp16", "bf16", "int8"))
    threads: int = setting(1, at_least=1, at_most=1024)


class ConfinedRun:
    """A converted network; each run of it is a confined process of its own."""

    def __init__(self, exporter: ConfinedExporter, files: Mapping[str, bytes]) -> None:
        self._exporter, self._files = exporter, dict(files)

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [n, classes] of images [n, c, h, w], in batches of the network's own size.

        Raises:
            InputRejectedError: the runtime cannot load the files, or does not take these images.
            ToolchainError: the runtime is not installed, or crashed.
        """
        exporter = self._exporter
        given = Parcel(
            facts={**exporter.facts(), "shape": list(images.shape)},
            files={**self._files, IMAGES: np.ascontiguousarray(images, np.float32).tobytes()},
        )
        answer = run_confined(RUN, given, f"{exporter.title}: running it", exporter.limits)
        with untrusted_answer(ToolchainError(f"{exporter.title} answered nonsense")):
            logits = np.frombuffer(answer.files["logits"], np.float32)
            found: NDArray[np.float32] = logits.reshape(answer.facts["shape"])
        if found.ndim != 2 or len(found) != len(images):
            raise InputRejectedError(
                f"{exporter.title} gave {found.shape} for {len(images)} images; one row of logits "
                "for each is needed"
            )
        return found


class ConfinedExporter:
    """The base of an `exporters.protocol.Exporter` whose runtime is never imported here.

    Attributes:
        name: of the runtime.
        needs: what to install for it.
        packages: of the runtime and its converter, the runtime's first, each with the first version
            that was tried and the first that is not taken.
        precisions: that it can be given.
        files: the names of the files that its converter makes, the first one to be opened.
        engine: the class that works in the confined process, as ``module:name``.
        computes: how each precision is stored and computed, in words, for the report.
        reproducible: whether converting twice gives the same bytes.
        calibrates: whether it makes INT8 of a float32 file by itself, on images.
    """

    name: str
    needs: str
    packages: ClassVar[Mapping[str, tuple[Version, Version]]]
    precisions: ClassVar[tuple[str, ...]]
    files: ClassVar[tuple[str, ...]]
    engine: ClassVar[str]
    computes: ClassVar[Mapping[str, str]]
    reproducible: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False

    def __init__(
        self, settings: HeldSettings | None = None, limits: ChildLimits = DEFAULT_LIMITS
    ) -> None:
        """Keep how the network is held and computed, and what a process of the runtime may take."""
        self.settings, self.limits = settings or HeldSettings(), limits

    def version(self) -> str | None:
        """The installed runtime's version; None where it or its converter is not installed."""
        found = [installed_version(package) for package in self.packages]
        return None if None in found else found[0]

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return f"{self.name} {self.version() or ''}".strip()

    def made_by(self) -> dict[str, str]:
        """The version of each package that decides the bytes."""
        found = {package: installed_version(package) for package in self.packages}
        return {package: version for package, version in found.items() if version is not None}

    def facts(self) -> dict[str, JsonValue]:
        """What the confined process is told."""
        precision, threads = self.settings.precision, self.settings.threads
        return {"engine": self.engine, "precision": precision, "threads": threads}

    def require(self) -> None:
        """Refuse, before any work, a runtime that is not here or a precision that it lacks.

        Raises:
            ToolchainError: the runtime is not installed.
            UsageError: it cannot hold the network in this precision.
        """
        if self.settings.precision not in self.precisions:
            raise UsageError(
                f"{self.settings.precision} was asked of {self.name}, which is given "
                f"{', '.join(self.precisions)} here; use one of these, or another runtime"
            )
        way_out = f"pip install '{self.needs}', or choose another --runtime"
        missing = [one for one in self.packages if installed_version(one) is None]
        if missing:
            raise ToolchainError(
                f"the runtime {self.name} was asked, and {' and '.join(missing)} "
                f"{'are' if len(missing) > 1 else 'is'} not installed; {way_out}"
            )
        for package, (first, end) in self.packages.items():
            found = installed_version(package) or ""
            if not first <= _numbers(found) < end:
                raise ToolchainError(
                    f"{package} {found} is installed, and {_dotted(first)} or above, below "
                    f"{_dotted(end)}, is what was tried here; {way_out}"
                )

    def convert(self, network: Network, model: bytes) -> dict[str, bytes]:
        """The files that the runtime loads, made in a confined process.

        Args:
            network: not read: the runtime is given the checked file.
            model: the ONNX file, in float32, or with Q/DQ for int8.

        Raises:
            ToolchainError: the runtime is not installed, or its converter crashed.
            InputRejectedError: the runtime does not take the network.
        """
        del network
        return dict(self.converted(model).files)

    def converted(self, model: bytes, calibration: NDArray[np.float32] | None = None) -> Parcel:
        """Convert as `convert` does; the facts say in "confined" what the process was held to.

        Args:
            model: the ONNX file.
            calibration: [n, c, h, w] normalised images, for a runtime that ``calibrates`` in INT8.
        """
        self.require()
        model = self.prepared(model)
        facts = {**self.facts(), "files": list(self.files), "shape": input_sides(model)}
        files = {MODEL: model}
        if calibration is not None:
            facts["images"] = list(calibration.shape)
            files[IMAGES] = np.ascontiguousarray(calibration, np.float32).tobytes()
        given = Parcel(facts=facts, files=files)
        doing = f"{self.title}: converting the network"
        answer = run_confined(CONVERT, given, doing, self.limits)
        if tuple(answer.files) != self.files:
            raise ToolchainError(f"{doing} made {sorted(answer.files)}; {self.files} was expected")
        return answer

    def prepared(self, model: bytes) -> bytes:
        """The checked file as the converter takes it best; it computes the same.

        Raises:
            InputRejectedError: it is not plain, valid ONNX.
        """
        return model

    def arena_bytes(self, files: Mapping[str, bytes]) -> int | None:
        """The memory that the runtime takes for a network; None where it asks the system for it.

        Raises:
            InputRejectedError: the runtime cannot load the files.
            ToolchainError: the runtime is not installed, or crashed.
        """
        del files
        return None

    def load(self, files: Mapping[str, bytes]) -> ConfinedRun:
        """The files, ready to be run in confined processes; they may be a stranger's.

        Raises:
            ToolchainError: the runtime is not installed.
            InputRejectedError: a file is missing.
        """
        self.require()
        missing = [name for name in self.files if name not in files]
        if missing:
            raise InputRejectedError(f"{self.name} needs {missing[0]}, which is not there")
        return ConfinedRun(self, {name: files[name] for name in self.files})


def _numbers(version: str) -> Version:
    """The leading numbers of a version, such as (2026, 4, 1) of "2026.4.1rc1"."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def input_sides(model: bytes) -> list[int | None]:
    """The shape [n, c, h, w] of a checked file's input; None for a batch that is left open.

    Raises:
        InputRejectedError: it is no plain ONNX file of an image network.
    """
    proto = open_onnx(model)
    name, image = image_input(proto)
    (given,) = (one for one in proto.graph.input if one.name == name)
    return [given.type.tensor_type.shape.dim[0].dim_value or None, *image]
