"""What differs between TensorRT 10 and 11 in its Python interface, and nothing else.

TensorRT 11 has no precision flags and no EXPLICIT_BATCH: every network is strongly typed. In 10
that is asked for, except for the DLA, whose engines 10 builds from precision flags.
"""

from __future__ import annotations

from typing import Any

from edgeclean.errors import ToolchainError

LOWEST, ABOVE = (10, 3), (12, 0)


class TensorRT10:
    """What TensorRT wants from 10.3 on."""

    def __init__(self, trt: Any) -> None:
        self._trt = trt

    def network_flags(self, *, on_dla: bool) -> int:
        """The flags of `Builder.create_network`: strongly typed, but for the DLA."""
        trt = self._trt
        return 0 if on_dla else 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def allow_precision(self, config: Any, precision: str, *, on_dla: bool) -> None:
        """Set precision flags, which only the DLA needs; it has no float32: fp32 becomes fp16."""
        trt = self._trt
        if on_dla:
            config.set_flag(trt.BuilderFlag.INT8 if precision == "int8" else trt.BuilderFlag.FP16)
            if precision == "int8":
                config.set_flag(trt.BuilderFlag.FP16)


class TensorRT11:
    """What TensorRT wants from 11.0 on."""

    def __init__(self, trt: Any) -> None:
        self._trt = trt

    def network_flags(self, *, on_dla: bool) -> int:
        """No flags of `Builder.create_network`: every network is strongly typed."""
        del on_dla
        return 0

    def allow_precision(self, config: Any, precision: str, *, on_dla: bool) -> None:
        """Set nothing: the graph says it."""


def differences(trt: Any) -> TensorRT10 | TensorRT11:
    """What the installed TensorRT wants.

    Raises:
        ToolchainError: its version is not one that this was written for.
    """
    version = tuple(int(number) for number in str(trt.__version__).split(".")[:2])
    if not LOWEST <= version < ABOVE:
        raise ToolchainError(
            f"TensorRT {trt.__version__} is installed; 10.3 or later and below 12 is needed: "
            "pip install 'tensorrt>=10.3,<12'"
        )
    return TensorRT10(trt) if version[0] == 10 else TensorRT11(trt)
