"""Linear layers whose products are oneDNN's on AMD's processors.

torch multiplies float32 on a CPU by MKL, which there reaches the less of what the machine can do the fewer rows there
are. oneDNN is in the same torch, takes what it is given transposed, and adds the bias in the same pass
(benchmarks/README.md has the figures). Anywhere else this is torch's own layer.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

CPU_INFO = Path("/proc/cpuinfo")


class Linear(nn.Linear):
    """nn.Linear, by whichever library is the faster one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """x weight' + bias, B x M, of x (B x N), weight (M x N) and bias (M,)."""
    if _is_faster() and _can_take(x, weight):
        product: torch.Tensor = Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return product
    return functional.linear(x, weight, bias)


class Product(torch.autograd.Function):
    """The same by oneDNN. Its own backward pass leaves the gradient of the weight to torch, which is as fast there."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _multiplied(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _multiplied(gradient, weight.T, None) if of_x else None,
            gradient.T @ x if of_weight else None,
            gradient.sum(dim=0) if of_bias else None,
        )


def _multiplied(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    # what torch.compile makes of a linear layer; torch has no public name for it
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _can_take(x: torch.Tensor, weight: torch.Tensor) -> bool:
    are_plain = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (x, weight))
    fit = x.ndim == 2 and x.shape[1] == weight.shape[1] and x.numel() > 0  # of what does not, torch speaks better
    # a weight that is no whole tensor but a part of one takes oneDNN's product a thousand times as long
    return are_plain and fit and weight.is_contiguous() and not torch.is_autocast_enabled("cpu")


def has_onednn() -> bool:
    """Whether this torch has oneDNN's product."""
    is_built_in: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_built_in and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def _is_faster() -> bool:
    """On AMD's processors. On Intel's, MKL is at home."""
    told = CPU_INFO.read_text(errors="replace") if CPU_INFO.exists() else platform.processor()
    return "AuthenticAMD" in told and has_onednn()
