"""What ONNX Runtime computes with: its CPU, CUDA or TensorRT provider, and no silent substitute."""

from __future__ import annotations

from typing import Any, Literal

import onnxruntime

from edgeclean.errors import ToolchainError

Provider = Literal["cpu", "cuda", "tensorrt"]
NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# Behind the first one, what takes over the operators that it lacks.
CHAINS = {
    "cpu": ("cpu",),
    "cuda": ("cuda", "cpu"),
    "tensorrt": ("tensorrt", "cuda", "cpu"),
}
TRANSFERS = {
    "cpu": "none: the input is in host memory",
    "cuda": "included: input from and output to host memory",
    "tensorrt": "included: input from and output to host memory",
}


def require_provider(provider: Provider) -> None:
    """Refuse a provider that the installed ONNX Runtime was not built with.

    Raises:
        ToolchainError: the message says what is there and what would bring the provider.
    """
    available = onnxruntime.get_available_providers()
    if NAMES[provider] not in available:
        here = [name for name, full in NAMES.items() if full in available]
        raise ToolchainError(
            f"the provider {provider} was asked, and the ONNX Runtime here has {', '.join(here)}; "
            "install onnxruntime-gpu (in place of onnxruntime) with the CUDA and TensorRT "
            "libraries that it names, or use cpu"
        )


def open_session(model: bytes, options: Any, provider: Provider) -> Any:
    """An ONNX Runtime session that runs on the asked provider.

    Raises:
        ToolchainError: the provider is missing, or it is there and cannot start (ONNX Runtime
            would go on with the next one, and measure that).
    """
    require_provider(provider)
    chain = [NAMES[name] for name in CHAINS[provider]]
    available = onnxruntime.get_available_providers()
    session = onnxruntime.InferenceSession(
        model, options, providers=[name for name in chain if name in available]
    )
    if session.get_providers()[0] != NAMES[provider]:
        raise ToolchainError(
            f"the provider {provider} could not start here, and ONNX Runtime went on with "
            f"{session.get_providers()[0]}; check its libraries and the device, or use cpu"
        )
    return session
