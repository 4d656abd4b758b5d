"""Upstream's input: .h5ad files whose obs has Group and, with drugs, SMILES and dose; controls paired by row."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from squidiff.config import InputError, Schema
from squidiff.data.conditions import N_BITS, Part, fingerprint, split_parts
from squidiff.data.matrix import in_memory
from squidiff.data.survey import survey
from squidiff.data.table import as_text, matched, read_cells, require_columns

SMILES, DOSE, GROUP = "SMILES", "dose", "Group"
DRUG_SCHEMA = Schema(condition_key=SMILES, control="", smiles_key=SMILES, dose_key=DOSE)
"""Upstream's own columns: a drug's SMILES is its name, and a cell without one is a control cell."""


def encode_drugs(smiles: Sequence[str | None], doses: Sequence[float], n_bits: int = N_BITS) -> np.ndarray:
    """Upstream's drug encodings, N x n_bits: the parts' fingerprints added up, times log10(dose + 1).

    Parts are joined by '+' outside brackets (charges hold a '+'). Raises InputError that names the row, from 0, and its
    text when a SMILES does not parse or a dose is no number of 0 or more.
    """
    encodings = np.zeros((len(smiles), n_bits))
    for row, (fingerprints, strength) in enumerate(_read_drugs(smiles, doses, n_bits)):
        encodings[row] = fingerprints * strength
    return encodings


def _read_drugs(
    smiles: Sequence[str | None], doses: Sequence[float], n_bits: int
) -> Iterator[tuple[np.ndarray, float]]:
    """The added fingerprints and the strength of each row, what is written alike read once."""
    if len(smiles) != len(doses):
        raise InputError(f"there are {len(smiles)} SMILES and {len(doses)} doses: give one dose a row")
    known: dict[str | None, np.ndarray] = {}
    for row, (text, dose) in enumerate(zip(smiles, doses, strict=True)):
        strength = _strength(dose, row)
        if text not in known:
            known[text] = _added(text, row, n_bits)
        yield known[text], strength


def _added(text: object, row: int, n_bits: int) -> np.ndarray:
    """The sum of the parts' fingerprints; 0 for the empty molecule, as in upstream."""
    if not isinstance(text, str):
        raise InputError(f"row {row} has no SMILES ({text!r}): fill it, or leave '' for no drug")
    total = np.zeros(n_bits)
    for part in split_parts(text) if text.strip() else ():
        try:
            total += fingerprint(part, n_bits)
        except InputError as error:
            raise InputError(
                f"row {row}, SMILES {text!r}: {error}" if part != text else f"row {row}: {error}"
            ) from None
    return total


def _strength(dose: object, row: int) -> float:
    try:
        number = float(dose)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise InputError(f"row {row} has dose {str(dose)!r}: it must be a number of 0 or more")
    return Part("", dose=number).strength


def read_upstream_cells(path: Path, n_genes: int, columns: Sequence[str]) -> ad.AnnData:
    """An .h5ad file with these obs columns. Raises InputError for a missing one, another number of genes, NaN in X."""
    adata = read_cells(path)
    require_columns(adata.obs, columns, f"obs of {path}")
    if adata.n_vars != n_genes:
        raise InputError(
            f"{path} has {adata.n_vars} genes, but the model {n_genes}: --gene_size must be what both have"
        )
    survey(in_memory(adata)).require_finite(str(path))
    return adata


def dense(adata: ad.AnnData) -> np.ndarray:
    """X, N x G, float32."""
    cells = in_memory(adata)
    return cells.toarray() if sp.issparse(cells) else np.ascontiguousarray(cells)  # products round by order in memory


def drugs_of(obs: pd.DataFrame, n_bits: int, where: Path) -> np.ndarray:
    """The drug encodings of cells, N x n_bits, float32. Raises InputError that names the file and the row."""
    with _saying_which_file(where):
        return encode_drugs(*_drug_columns(obs), n_bits).astype(np.float32)


def require_drugs(obs: pd.DataFrame, where: Path) -> None:
    """Raises what `drugs_of` raises, without the memory of its encodings."""
    with _saying_which_file(where):
        deque(_read_drugs(*_drug_columns(obs), N_BITS), maxlen=0)


def _drug_columns(obs: pd.DataFrame) -> tuple[list[str | None], list[float]]:
    """SMILES, None where there is none, and doses."""
    return as_text(obs[SMILES]).where(obs[SMILES].notna(), None).tolist(), obs[DOSE].tolist()


@contextmanager
def _saying_which_file(where: Path) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"obs of {where}, {error}") from None


def read_paired_controls(path: Path, treated: ad.AnnData, where: Path) -> ad.AnnData:
    """The control cells, one for each treated cell in the same row, with the treated cells' order of genes.

    Raises InputError when they are not as many, or when some genes are the treated cells' and others are not. Where
    all names differ (a file without names has numbers) the order is taken as it is, as in upstream.
    """
    controls = read_upstream_cells(path, treated.n_vars, ())
    if controls.n_obs != treated.n_obs:
        raise InputError(
            f"{path} has {controls.n_obs} cells and {where} has {treated.n_obs}: controls are paired by row, so both "
            "must have as many"
        )
    return in_order_of(controls, path, list(treated.var_names), str(where))


def in_order_of(cells: ad.AnnData, path: Path, genes: Sequence[str], whose: str) -> ad.AnnData:
    """Cells with their genes in this order, or as they are where no name is shared. Raises InputError in between."""
    is_same = list(cells.var_names) == list(genes)
    return cells if is_same or set(cells.var_names).isdisjoint(genes) else matched(cells, genes, str(path), whose)
