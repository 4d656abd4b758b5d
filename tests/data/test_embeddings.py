"""The user's own vectors come in alike from every format, and an unseen gene can be asked for with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from squidiff.config import InputError, Schema
from squidiff.data.conditions import ConditionEncoder, Part, fingerprint
from squidiff.data.embeddings import read_embeddings

NAMES = ("KLF1", "NA", "7")
VECTORS = np.array([[0.5, 1.0], [-2.0, 0.25], [3.0, 0.0]], dtype=np.float32)


def as_csv(folder: Path) -> str:
    pd.DataFrame(VECTORS, NAMES).to_csv(folder / "e.csv")
    return str(folder / "e.csv")


def as_npz(folder: Path) -> str:
    np.savez(folder / "e.npz", names=np.array(NAMES), vectors=VECTORS)
    return str(folder / "e.npz")


def as_npz_by_name(folder: Path) -> str:
    np.savez(folder / "e.npz", **dict(zip(NAMES, VECTORS, strict=True)))
    return str(folder / "e.npz")


def in_uns(value: object) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        adata = ad.AnnData(np.ones((2, 2), dtype=np.float32))
        adata.uns["mine"] = value
        adata.write_h5ad(folder / "e.h5ad")
        return f"{folder / 'e.h5ad'}:mine"

    return write


def dates(folder: Path) -> str:
    np.savez(folder / "e.npz", a=np.array(["2020-01-01"], dtype="datetime64[D]"))
    return str(folder / "e.npz")


def records(folder: Path) -> str:
    np.savez(folder / "e.npz", a=np.zeros(2, dtype=[("x", "f4")]))
    return str(folder / "e.npz")


def of_another_encoding(folder: Path) -> str:
    where = in_uns({"a": [1.0]})(folder)
    with h5py.File(folder / "e.h5ad", "a") as file:
        file["uns/mine"].attrs["encoding-type"] = "of next year"
    return where


WRITERS = {
    "csv": as_csv,
    "npz": as_npz,
    "npz by name": as_npz_by_name,
    "uns table": in_uns(pd.DataFrame(VECTORS, NAMES, ["x", "y"])),
    "uns by name": in_uns(dict(zip(NAMES, VECTORS, strict=True))),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_vectors(name: str, tmp_path: Path) -> None:
    names, vectors = read_embeddings(WRITERS[name](tmp_path))
    assert dict(zip(names, vectors.tolist(), strict=True)) == dict(zip(NAMES, VECTORS.tolist(), strict=True))
    assert vectors.dtype == np.float32


@pytest.mark.parametrize("name", WRITERS)
def test_a_gene_that_was_never_seen_is_described_by_its_vector(name: str, tmp_path: Path) -> None:
    schema = Schema(condition_key="gene", control="ctrl", embeddings=WRITERS[name](tmp_path))
    encoder = ConditionEncoder.fit([(Part("KLF1"),)], schema)
    together = encoder.encode((Part("NA"), Part("7", dose=9.0)))
    np.testing.assert_allclose(together, VECTORS[1] + VECTORS[2])  # log10(9 + 1) is 1
    with pytest.raises(InputError, match="condition 'SPI1' is unknown"):
        encoder.encode((Part("SPI1"),))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: str(folder / "none.npz"), "none.npz does not exist"),
        (lambda folder: in_uns({"a": [1.0]})(folder).replace(":mine", ":other"), "has no 'other' in uns: it has mine"),
        (lambda folder: in_uns({"a": [1.0]})(folder).removesuffix(":mine"), "needs a key of uns: write .*e.h5ad:KEY"),
        (in_uns({"a": [1.0, 2.0], "b": [1.0]}), "must have vectors of numbers, all of one length"),
        (in_uns({"a": [1.0, np.nan]}), "and no gaps"),
        (
            in_uns({"a": np.array([1 + 2j])}),
            "must have vectors of numbers, all of one length: they are of type complex128",
        ),
        (in_uns(pd.DataFrame({"x": [1 + 2j]}, ["a"])), "they are of type complex128"),
        (dates, "they are of type datetime64"),
        (records, "they are of type "),
        (of_another_encoding, "cannot be read: "),
        (in_uns("words"), "must hold a table, or a vector for each name"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(write: Callable[[Path], str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_embeddings(write(tmp_path))


def test_an_npz_file_that_is_damaged_or_locked_is_refused(tmp_path: Path) -> None:
    whole = Path(as_npz(tmp_path)).read_bytes()
    file = tmp_path / "damaged.npz"
    for at in range(0, len(whole), 3):
        for byte in (1, 255):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ byte]) + whole[at + 1 :])
            try:
                read_embeddings(str(file))
            except InputError:
                continue


def test_an_npz_file_with_objects_is_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "exploded",)

    np.savez(tmp_path / "e.npz", names=np.array([Bomb()], dtype=object), vectors=np.ones((1, 2)))
    with pytest.raises(InputError, match="cannot be read as arrays"):
        read_embeddings(str(tmp_path / "e.npz"))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "e.npz").read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read as arrays"):
        read_embeddings(str(tmp_path / "cut.npz"))
    assert not (tmp_path / "exploded").exists()


def test_two_fingerprints_of_drugs() -> None:
    """Of atoms, and of features such as donor, acceptor, aromatic."""
    oxygen, sulfur = "c1ccoc1", "c1ccsc1"
    assert (fingerprint(oxygen, kind="morgan") != fingerprint(sulfur, kind="morgan")).any()
    assert (fingerprint("C1CCCCC1", kind="morgan") != fingerprint("C1CCCCC1")).any()
    schema = Schema(condition_key="drug", control="none", smiles_key="smiles", fingerprint="morgan")
    parts = (Part("furan", dose=9.0, smiles=oxygen), Part("thiophene", dose=99.0, smiles=sulfur))
    encoder = ConditionEncoder.fit([parts], schema)
    expected = fingerprint(oxygen, kind="morgan") + 2 * fingerprint(sulfur, kind="morgan")
    np.testing.assert_allclose(encoder.encode(parts), expected)
    usual = ConditionEncoder.fit([parts], replace(schema, fingerprint="feature-morgan"))
    np.testing.assert_allclose(usual.encode(parts), fingerprint(oxygen) + 2 * fingerprint(sulfur))
    with pytest.raises(InputError, match="--fingerprint is given without --smiles-key"):
        Schema(condition_key="drug", control="none", fingerprint="morgan")
