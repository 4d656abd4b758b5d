"""Files that were cut or whose bits flipped: a finding or nothing, and never an exception or a crash."""

from __future__ import annotations

import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from test_check import SCHEMA, good

from squidiff.config import InputError
from squidiff.data.check import check
from squidiff.data.matrix import as_matrix

N_FILES = 150
HANGS = 0.02
"""HDF5 itself never comes back from a few damaged files in a thousand; nothing can be said of them."""
CHILD = """
import sys
from pathlib import Path
import numpy as np
from squidiff.data import readers
from squidiff.data.check import check
from test_check import SCHEMA
if sys.argv[4] == "on disk":
    readers.LARGEST_IN_MEMORY = 0
whole, n, start = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for i in range(start, n):
    rng, bits = np.random.default_rng(i), bytearray(whole.read_bytes())
    if i % 4 == 0:
        bits = bits[: rng.integers(len(bits))]
    else:
        for at in rng.integers(len(bits), size=rng.integers(1, 20)):
            bits[at] ^= 1 << int(rng.integers(8))
    (whole.parent / "damaged.h5ad").write_bytes(bits)
    try:
        print(i, "found" if check(whole.parent / "damaged.h5ad", SCHEMA).errors else "good", flush=True)
    except BaseException as error:
        print(i, f"raised {error!r}", flush=True)
"""


def outcomes(whole: Path, where: str) -> Iterator[str]:
    """What became of each damaged file; a process of its own survives what crashes or hangs."""
    done = 0
    while done < N_FILES:
        command = [sys.executable, "-W", "error", "-c", CHILD, whole, str(N_FILES), str(done), where]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent) as child:
            assert child.stdout is not None
            while done < N_FILES:
                if not select.select([child.stdout], [], [], 30.0)[0]:
                    child.kill()
                    yield "hung"
                else:
                    line = child.stdout.readline()
                    yield line.split(" ", 1)[1].strip() if line else f"crashed on file {done}"
                    if line:
                        done += 1
                        continue
                done += 1
                break


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="waits for a pipe with select")
@pytest.mark.parametrize("where", ["in memory", "on disk"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_a_damaged_file_is_a_finding_or_still_good(sparse: bool, where: str, tmp_path: Path) -> None:
    good(sparse).write_h5ad(tmp_path / "whole.h5ad")
    counts = Counter(outcomes(tmp_path / "whole.h5ad", where))
    assert set(counts) <= {"found", "good", "hung"}
    assert counts["hung"] <= HANGS * N_FILES
    assert counts["found"] > N_FILES / 2


@pytest.mark.parametrize("damage", ["indices", "indptr"])
@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix])
def test_indices_that_point_outside_are_refused_before_they_are_read(damage: str, kind: type) -> None:
    adata = ad.AnnData(kind(np.eye(20, dtype=np.float32)))
    getattr(adata.X, damage)[3] = 2**30
    with pytest.raises(InputError, match="X is no sparse matrix"):
        as_matrix(adata)
    assert [f.what for f in check(adata, SCHEMA).errors] == ["unusable file"]
