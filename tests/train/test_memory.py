"""Memory that training keeps is kept while it trains, and allocation is as quick afterwards as before."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from squidiff.train import memory

N_BYTES, N_TIMES = 2**22, 200


def page_faults() -> int:
    """Of so many tensors that are made and dropped: pages that the kernel had to hand out."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(N_TIMES):
        torch.ones(N_BYTES // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="only GNU's C library is told what to keep")
def test_freed_memory_is_given_again_inside_and_is_no_slower_afterwards() -> None:
    pages_of_one = N_BYTES // 4096
    with memory.reused():
        page_faults()
        assert page_faults() < 2 * pages_of_one
    page_faults()
    assert page_faults() < N_TIMES * pages_of_one / 4


def test_an_error_inside_comes_out() -> None:
    with pytest.raises(KeyError), memory.reused():
        raise KeyError("inside")
