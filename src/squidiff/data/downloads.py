"""Data sets by name: downloaded once into a cache and checked by their hash, or generated there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import anndata as ad

from squidiff.config import InputError
from squidiff.data.datasets import load_pbmc68k
from squidiff.data.matrix import as_matrix
from squidiff.data.simulate import simulate_perturbation
from squidiff.data.table import read_cells, write_cells

OnBytes = Callable[[int, int], None]
"""Called with the bytes that are there and all that there will be, 0 where the server does not say."""
TIMEOUT_S = 30.0
ZENODO = "https://zenodo.org/records/13350497/files"
"""scPerturb 1.4 (Peidli et al., Nature Methods 2024), which states an MD5 for each of its files."""


@dataclass(frozen=True)
class Download:
    """A file on a server."""

    what: str
    source: str
    """Who published the data, and who states the hash."""
    url: str
    known_hash: str
    """`sha256:...` or `md5:...`"""
    size_mb: float


@dataclass(frozen=True)
class Generated:
    """A file that is made here."""

    what: str
    source: str
    make: Callable[[], ad.AnnData]


DATASETS: dict[str, Download | Generated] = {
    "simulated": Generated(
        "a drug response of 5 cell types, 300 genes, raw counts", "simulated here", simulate_perturbation
    ),
    "simulated-100": Generated(
        "the same of 3 cell types and 100 genes, as in upstream's first notebook",
        "simulated here",
        lambda: simulate_perturbation(n_genes=100, n_cell_types=3, n_cells=300),
    ),
    "simulated-pairs": Generated(
        "two drugs and both together, 3 cell types, 300 genes, raw counts",
        "simulated here",
        lambda: simulate_perturbation(n_cell_types=3, conditions=("A", "B", "A+B")),
    ),
    "pbmc68k": Generated(
        "700 blood cells of ten types, 765 genes, log-normalised",
        "Zheng et al., Nature Communications 2017; comes with scanpy",
        load_pbmc68k,
    ),
    "kang": Download(
        "24,673 blood cells with and without interferon-beta, raw counts; obs: label, cell_type, replicate",
        "Kang et al., Nature Biotechnology 2018 (GSE96583); URL of pertpy 1.0, SHA-256 as two projects state it",
        "https://exampledata.scverse.org/pertpy/kang_2018.h5ad",
        "sha256:e6a5adac64dcdeb36eaba27db49b63e0c64bb0ed4a64c6705971506b41c39830",
        38.0,
    ),
    "norman": Download(
        "111,445 K562 cells with one or two genes activated, raw counts",
        "Norman et al., Science 2019 (GSE133344); scPerturb, MD5 of its Zenodo record as CASCADE states it",
        f"{ZENODO}/NormanWeissman2019_filtered.h5ad?download=1",
        "md5:c870e6967d91c017d9da827bab183cd6",
        698.7,
    ),
    "sciplex3": Download(
        "three cancer lines under 188 drugs at four doses, raw counts",
        "Srivatsan et al., Science 2020 (GSE139944); scPerturb, MD5 of its Zenodo record as CellForge states it",
        f"{ZENODO}/SrivatsanTrapnell2020_sciplex3.h5ad?download=1",
        "md5:c9e70629505d98c7ca1a837f62b14e89",
        2526.6,
    ),
}


def cache_folder() -> Path:
    """Where data sets are kept: the folder that SQUIDIFF_DATA names, or the user's cache."""
    import pooch

    return Path(os.environ.get("SQUIDIFF_DATA") or pooch.os_cache("squidiff-ng"))


def get_dataset(name: str, folder: Path | None = None, on_bytes: OnBytes | None = None) -> Path:
    """The file of a data set, made or downloaded unless it is there already.

    What a broken transfer brought stays in the cache, and the next call goes on from there. Raises InputError for an
    unknown name, without a connection, when what came is not what the hash says, and when another file is in its place.
    """
    if name not in DATASETS:
        raise InputError(f"there is no data set {name!r}: the names are {', '.join(DATASETS)}")
    found, folder = DATASETS[name], folder or cache_folder()
    path = folder / f"{name}.h5ad"
    if isinstance(found, Generated):
        made = found.make()
        if not path.exists():
            write_cells(path, made)
        elif not _is_same(made, path):
            raise _in_its_place(path, name)
        return path
    if path.exists() and not _has_hash(path, found.known_hash):
        raise _in_its_place(path, name)
    return _download(found, path, on_bytes)


def _is_same(made: ad.AnnData, path: Path) -> bool:
    """Whether the file holds these values, names and labels."""
    try:
        there = read_cells(path)
    except InputError:
        return False
    if there.shape != made.shape or (as_matrix(there) != as_matrix(made)).sum():
        return False
    tables = ((there.obs, made.obs), (there.var, made.var))
    return all(one.astype(str).equals(other.astype(str)) for one, other in tables)


def _has_hash(path: Path, known_hash: str) -> bool:
    import pooch

    algorithm, digest = known_hash.split(":")
    return path.is_file() and pooch.file_hash(str(path), alg=algorithm) == digest


def _in_its_place(path: Path, name: str) -> InputError:
    return InputError(
        f"{path} is there already and not the data set {name}: move it away, or name another folder in SQUIDIFF_DATA"
    )


def _download(found: Download, path: Path, on_bytes: OnBytes | None) -> Path:
    import pooch
    import requests

    part = path.with_suffix(".part")

    def transfer(url: str, output_file: IO[bytes] | str | Path, _: object) -> None:
        _fetch(url, part, on_bytes)
        Path(str(output_file)).unlink(missing_ok=True)
        part.replace(str(output_file))

    try:
        pooch.get_logger().setLevel("ERROR")
        pooch.retrieve(found.url, found.known_hash, path.name, path.parent, downloader=transfer)
    except requests.HTTPError as error:
        raise InputError(f"{found.url} cannot be had: the server answers {error.response.status_code}") from error
    except (requests.RequestException, OSError) as error:
        there = f"; {part.stat().st_size / 1e6:,.1f} MB are kept" if part.is_file() else ""
        raise InputError(
            f"{found.url} cannot be fetched ({_reason(error)}){there}: when there is a connection, run the same again"
        ) from error
    except ValueError as error:  # pooch's word for a hash that is not the known one
        raise InputError(
            f"{found.url} is not the file that it should be (its hash is not {found.known_hash}): it was not kept"
        ) from error
    return path


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.Timeout):
        return "the server does not answer"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke"
    if isinstance(error, requests.ConnectionError):
        return "there is no connection to the server"
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def _fetch(url: str, part: Path, on_bytes: OnBytes | None) -> None:
    """Downloads what is not yet in `part`, if the server can send a range, else all of it."""
    import requests

    part.parent.mkdir(parents=True, exist_ok=True)
    start = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "squidiff-ng"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()  # it holds more than the file has
            return _fetch(url, part, on_bytes)
        response.raise_for_status()
        goes_on = response.status_code == requests.codes.partial_content
        done = start if goes_on else 0
        total = done + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if goes_on else "wb") as file:
            for chunk in response.iter_content(1 << 20):
                file.write(chunk)
                done += len(chunk)
                if on_bytes is not None:
                    on_bytes(done, total)
    return None


def describe(name: str) -> tuple[str, str, str, str]:
    """Name, what it is, its size in words, and its source."""
    found: Any = DATASETS[name]
    size = f"{found.size_mb:,.0f} MB" if isinstance(found, Download) else "made here"
    return name, found.what, size, found.source
