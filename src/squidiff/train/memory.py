"""Memory of the process during training: what a step frees, the next one is given again."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of mallopt: free bytes at the top of the heap above which they go back, bytes of a block that is mapped by itself."""
ALL, MOST = 2**31 - 1, 2**25
"""As large as may be: of a block 32 MB, the most that some versions take, and that the library comes to by itself."""


@contextmanager
def reused() -> Iterator[None]:
    """Inside, freed memory stays with the process, which gives it back at the end.

    The C library gives large blocks back at once and asks for new ones, whose pages the kernel fills with zeros: of a
    step whose gradients and activations are allocated anew, this is a tenth to a quarter of the time. Where it is
    another library than GNU's, nothing is changed.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    assert library is not None
    for option, value in ((MMAP_THRESHOLD, MOST), (TRIM_THRESHOLD, ALL)):
        library.mallopt(option, value)
    try:
        yield
    finally:
        library.mallopt(TRIM_THRESHOLD, 2 * MOST)  # as the library itself would have it by now
        library.malloc_trim(ctypes.c_size_t(0))
