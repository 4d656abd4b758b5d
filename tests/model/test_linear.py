"""oneDNN's product is torch's, with the same gradients, and is taken where it is known to be faster alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gaussian_cells import randn, untrained
from torch import nn
from torch.nn import functional

from squidiff.model import linear as layers
from squidiff.model.linear import Product, linear
from squidiff.model.upstream import UpstreamNetwork, UpstreamSizes

needs_onednn = pytest.mark.skipif(not layers.has_onednn(), reason="this torch has no oneDNN")
SHAPES = ((1, 1, 1), (1, 64, 256), (3, 700, 5), (64, 100, 512), (257, 512, 100))


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where oneDNN is the faster one."""
    monkeypatch.setattr(layers, "_is_faster", layers.has_onednn)


def given(n_rows: int, n_in: int, n_out: int) -> list[torch.Tensor]:
    """x, weight and bias, and a gradient of the product."""
    shapes = ((n_rows, n_in), (n_out, n_in), (n_out,), (n_rows, n_out))
    return [randn(*shape, seed=i).float() for i, shape in enumerate(shapes)]


def with_gradients(multiply: Callable[..., Any], *tensors: torch.Tensor) -> list[torch.Tensor]:
    """The product, and the gradients of x, weight and bias."""
    *taken, gradient = tensors
    taken = [t.detach().requires_grad_() for t in taken]
    product = multiply(*taken)
    product.backward(gradient)
    return [product.detach(), *(t.grad for t in taken)]


@needs_onednn
@pytest.mark.parametrize("shape", SHAPES)
def test_product_and_gradients_are_those_of_double_precision(shape: tuple[int, int, int]) -> None:
    tensors = given(*shape)
    exact = with_gradients(functional.linear, *(t.double() for t in tensors))
    found = with_gradients(Product.apply, *tensors)
    for one, other, terms in zip(found, exact, (shape[1], shape[2], shape[0], shape[0]), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-6 * (terms + 2))


@needs_onednn
def test_product_repeats_bit_by_bit() -> None:
    tensors = given(256, 512, 512)
    first, again = (with_gradients(Product.apply, *tensors) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@needs_onednn
def test_product_of_a_row_does_not_hang_on_the_rows_beside_it() -> None:
    x, weight, bias, _ = given(256, 512, 512)
    together = Product.apply(x, weight, bias)
    for n in (1, 7, 64):
        torch.testing.assert_close(Product.apply(x[:n], weight, bias), together[:n], rtol=0, atol=1e-4)


@needs_onednn
def test_tensors_may_lie_in_memory_as_they_like() -> None:
    x, weight, bias, gradient = given(6, 5, 3)
    for strange, strange_gradient in ((x.T.contiguous().T, gradient[:1].expand(6, 3)), (x[:1].expand(6, 5), gradient)):
        exact = with_gradients(functional.linear, strange, weight, bias, strange_gradient)
        found = with_gradients(Product.apply, strange, weight, bias, strange_gradient)
        for one, other in zip(found, exact, strict=True):
            torch.testing.assert_close(one, other)


@needs_onednn
def test_gradients_that_nobody_asks_for_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias, gradient = given(8, 5, 3)
    product = Product.apply(x, weight.requires_grad_(), bias)
    monkeypatch.delattr(layers, "_multiplied")  # which the gradient of x would ask for
    product.backward(gradient)
    assert x.grad is None
    assert bias.grad is None
    torch.testing.assert_close(weight.grad, gradient.T @ x)


@needs_onednn
def test_what_onednn_does_not_take_is_torchs(faster: None) -> None:
    x, weight, bias, _ = given(6, 5, 3)
    assert linear(x.requires_grad_(), weight, bias).grad_fn.name() == "ProductBackward"  # type: ignore[union-attr]
    in_double, with_gaps = (x.double(), weight.double(), bias.double()), functional.pad(weight, (0, 2))[:, :5]
    for taken in (in_double, (x, with_gaps, bias), (x[:0], weight, bias), (x[None], weight, bias)):
        product = linear(*taken)
        assert product.grad_fn.name() != "ProductBackward"  # type: ignore[union-attr]
        assert torch.equal(product, functional.linear(*taken))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(x[:, :4], weight, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16


@pytest.mark.parametrize(("vendor", "is_faster"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_processors_maker_decides(
    vendor: str, is_faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(layers, "CPU_INFO", file)
    assert layers._is_faster.__wrapped__() == (is_faster and layers.has_onednn())
    x, weight, bias, _ = given(6, 5, 3)
    torch.testing.assert_close(linear(x, weight, bias), functional.linear(x, weight, bias))


def test_all_layers_of_both_networks_are_these() -> None:
    upstream = UpstreamNetwork.initialise(UpstreamSizes(7, 0, 3, 8, 8, 2, 8), seed=0)
    plain = [m for network in (untrained(), upstream) for m in network.modules() if type(m) is nn.Linear]
    assert not plain
