"""Mixed precision where the processor has it: bfloat16 autocast, else plain float32.

One gradient is left in float32 on a processor: that of depthwise convolutions. oneDNN has no fast
kernel for most of them in bfloat16 (5x5, strides, small maps), and a step of a network of the
edge's kind was slower with bfloat16 than without (``benchmarks/studies/depthwise_speed.py``).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_X86 = ("x86_64", "amd64")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 convolutions run on dedicated instructions of this device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type == "cpu":
        # The check that torch's own oneDNN convolutions make before they choose a bfloat16 kernel.
        supported = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        return supported and (platform.machine().lower() not in _X86 or _x86_has_bfloat16())
    return False


def _x86_has_bfloat16() -> bool:
    """Return whether an x86 processor has the instructions.

    oneDNN takes bfloat16 from AVX-512 on; without them it emulates it, in several times
    float32's time.
    """
    tiles = bool(torch.cpu._is_amx_tile_supported())
    return tiles or bool(torch.cpu._is_avx512_bf16_supported())


@contextmanager
def mixed_precision(device: torch.device) -> Iterator[None]:
    """Compute in bfloat16 meanwhile where it is fast; elsewhere nothing changes."""
    fast = has_fast_bfloat16(device)
    gradients = _DepthwiseGradients() if fast and device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=fast), gradients:
        yield


class _DepthwiseGradients(TorchFunctionMode):
    """Lets depthwise convolutions that need a gradient compute it in float32."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Collection[type],
        listed: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        return (_convolved if function is torch.conv2d else function)(*listed, **(named or {}))


def _convolved(  # noqa: PLR0913 - the arguments of torch.conv2d
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Do as ``torch.conv2d``, but for the gradients of a depthwise convolution."""
    learns = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
    depthwise = 1 < groups == len(weight) and weight.shape[1] == 1 and input.ndim == 4
    depthwise = depthwise and input.dtype != torch.float64  # which autocast leaves alone too
    if not learns or not depthwise or isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    outputs: Tensor = _DepthwiseConv.apply(  # type: ignore[no-untyped-call]
        input.bfloat16(),
        weight.bfloat16(),
        None if bias is None else bias.bfloat16(),
        _pair(stride),
        _pair(padding),
        _pair(dilation),
    )
    return outputs


def _pair(extent: int | Sequence[int]) -> list[int]:
    return [extent] * 2 if isinstance(extent, int) else list(extent)


class _DepthwiseConv(torch.autograd.Function):
    """A depthwise convolution in bfloat16, with its gradients in float32."""

    @staticmethod
    def forward(  # noqa: PLR0913 - the arguments of a convolution
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
    ) -> Tensor:
        """Return the outputs in bfloat16."""
        ctx.save_for_backward(images, weight)
        ctx.biased, ctx.where = bias is not None, (stride, padding, dilation)
        return torch.conv2d(images, weight, bias, stride, padding, dilation, len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of images, weight and bias, in bfloat16 as autograd expects."""
        images, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.where
        wanted = list(ctx.needs_input_grad[:3])
        with torch.autocast("cpu", enabled=False):
            gradients = torch.ops.aten.convolution_backward(
                gradient.float(),
                images.float(),
                weight.float(),
                [len(weight)] if ctx.biased else None,
                stride,
                padding,
                dilation,
                False,
                [0, 0],
                len(weight),
                wanted,
            )
        given = (
            one.bfloat16() if asked else None for one, asked in zip(gradients, wanted, strict=True)
        )
        return (*given, None, None, None)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep a GPU's convolutions in float32 meanwhile: cuDNN else rounds their inputs to TF32.

    Comparisons with a tolerance of float32 need it; a CPU computes so anyway.
    """
    cudnn = torch.backends.cudnn
    with cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    ):
        yield


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a network's parameters (the CPU for a network without any)."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def channels_last(module: nn.Module) -> nn.Module:
    """Return the module with its convolutions' weights in channels-last order, which is faster."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.dim() == 4:  # `nn.Module.to` refuses a parameter of five axes
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return module
