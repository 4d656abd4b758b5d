"""Conditions: a set of parts, each with a strength, written as text in obs and turned into numbers for the model.

A part is a drug (SMILES: fingerprint), a gene with a direction (one-hot of the training vocabulary, or the user's
embedding) or any other stimulus (one-hot). A condition's features are the sum over its parts of strength times vector,
so that the order of the parts does not matter.
"""

from __future__ import annotations

import difflib
import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from squidiff.config import DOSE_SEPARATOR, PART_SEPARATOR, InputError, Schema
from squidiff.data.embeddings import read_embeddings

N_BITS = 1024
"""Of a drug's fingerprint, as in upstream."""
RADIUS = 2
N_TIME_FEATURES = 7

DIRECTION_SIGN = {
    "activation": 1.0,
    "crispra": 1.0,
    "overexpression": 1.0,
    "knock-down": -1.0,
    "knock-out": -1.0,
    "crispri": -1.0,
}


@dataclass(frozen=True)
class Part:
    """One drug, gene or stimulus of a condition."""

    name: str
    dose: float | None = None
    direction: str | None = None
    smiles: str | None = None

    def __str__(self) -> str:
        dose = "" if self.dose is None else f"{DOSE_SEPARATOR}{self.dose:.12g}"
        return f"{self.name}{dose}{'' if self.direction is None else f' {self.direction}'}"

    @property
    def strength(self) -> float:
        """log10(dose + 1), as in upstream, with the sign of the direction; 1 where there is no dose."""
        size = 1.0 if self.dose is None else float(np.log10(self.dose + 1))
        return size if self.direction is None else size * DIRECTION_SIGN[self.direction]


def split_parts(text: str) -> list[str]:
    """Splits at '+' outside square brackets: `A+B` -> A, B; a charge such as `[NH3+]` stays whole."""
    parts, depth, current = [], 0, ""
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "+" and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += letter
    return [*parts, current.strip()]


def parse_condition(values: dict[str, object], schema: Schema) -> tuple[Part, ...]:
    """The parts of one row's condition, sorted by name; none for a control or without a condition column.

    `values` holds the row's value for each of the schema's columns (SMILES may be absent). Raises InputError with the
    row's value when the parts of label, SMILES, dose and direction do not match or cannot be read.
    """
    if schema.condition_key is None:
        return ()
    label = str(values[schema.condition_key])
    if label == schema.control:
        return ()
    names = split_parts(label)
    if "" in names:
        raise InputError(f"condition {label!r} has an empty part: write parts as A+B")
    doses = _spread(values, schema.dose_key, label, len(names))
    directions = _spread(values, schema.direction_key, label, len(names))
    smiles = _spread(values, schema.smiles_key, label, len(names), one_for_all=False)
    rows = zip(names, doses, directions, smiles, strict=True)
    # `A+ctrl`, or A+B at doses 1+0, is how some data sets write A alone
    parts = [Part(n, _dose(d, label), _direction(r), s or None) for n, d, r, s in rows if n != schema.control]
    named = Counter((part.name, part.direction) for part in parts)
    twice = [name for (name, _), n in named.items() if n > 1]
    if twice and schema.dose_key is None:
        raise InputError(f"condition {label!r} has {twice[0]!r} twice: name each part once")
    given = [part for part in parts if part.dose != 0]
    return tuple(sorted(given or parts, key=str))


def canonical_label(parts: tuple[Part, ...]) -> str:
    """One spelling for one condition, whatever the order of its parts: `A + B`; '' without parts."""
    return PART_SEPARATOR.join(str(part) for part in parts)


def _spread(
    values: dict[str, object], key: str | None, label: str, n: int, one_for_all: bool = True
) -> list[str | None]:
    if key is None or key not in values:
        return [None] * n
    text = str(values[key])
    parts = [text] if _is_number(text) else split_parts(text)  # 1e+3 is one dose
    if len(parts) == 1 and one_for_all:
        parts = parts * n
    if len(parts) != n:
        raise InputError(f"condition {label!r} has {n} parts but {key} {values[key]!r} has {len(parts)}")
    return list(parts)


def read_number(text: str) -> float:
    """A number as people write one: Python itself takes 1_0, and the digits of every script.

    Raises ValueError where it is none.
    """
    if "_" in text or not text.strip().isascii():
        raise ValueError(f"{text!r} is not a number")
    return float(text)


def _is_number(text: str) -> bool:
    try:
        read_number(text)
    except ValueError:
        return False
    return True


def _dose(text: str | None, label: str) -> float | None:
    if text is None:
        return None
    if not _is_number(text):
        raise InputError(f"dose {text!r} of condition {label!r} is not a number: write numbers, all in one unit")
    dose = read_number(text)
    if not dose >= 0 or dose == float("inf"):
        raise InputError(f"dose {text!r} of condition {label!r} must be a number of 0 or more")
    return dose


def _direction(text: str | None) -> str | None:
    if text is None:
        return None
    if text.lower() not in DIRECTION_SIGN:
        raise InputError(f"direction {text!r} is unknown: use one of {', '.join(DIRECTION_SIGN)}")
    return text.lower()


def fingerprint(smiles: str, n_bits: int = N_BITS, kind: str = "feature-morgan") -> np.ndarray:
    """The fingerprint (n_bits, radius 2) of a drug: `morgan`, or `feature-morgan` as upstream's.

    Needs rdkit, the extra 'drug'. Raises InputError without it, and when the SMILES does not parse.
    """
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import rdFingerprintGenerator
    except ImportError:
        raise InputError("SMILES need rdkit: install it with `pip install 'squidiff-ng[drug]'`") from None
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles) if smiles else None
    if molecule is None:
        raise InputError(f"SMILES {smiles!r} does not parse: correct it or drop its cells")
    features = rdFingerprintGenerator.GetMorganFeatureAtomInvGen() if kind == "feature-morgan" else None
    generator = rdFingerprintGenerator.GetMorganGenerator(
        radius=RADIUS, fpSize=n_bits, atomInvariantsGenerator=features
    )
    return np.asarray(generator.GetFingerprintAsNumPy(molecule), dtype=np.float32)


def canonical_smiles(smiles: str) -> str:
    """One spelling for one drug, of a SMILES that `fingerprint` reads."""
    from rdkit import Chem

    return str(Chem.MolToSmiles(Chem.MolFromSmiles(smiles)))


def scaffold(smiles: str) -> str:
    """The Bemis-Murcko scaffold of a drug, '' for one without rings. Raises InputError for SMILES that do not parse."""
    fingerprint(smiles)
    from rdkit.Chem.Scaffolds import MurckoScaffold

    return str(MurckoScaffold.MurckoScaffoldSmiles(smiles))


@dataclass(frozen=True)
class ConditionEncoder:
    """Turns parts into features: the vocabulary of training, or every name that the user's embeddings have."""

    kind: Literal["one-hot", "smiles", "morgan", "embedding"]
    """`smiles` is the feature-Morgan fingerprint."""
    names: tuple[str, ...]
    vectors: np.ndarray
    """Parts x F"""

    @classmethod
    def fit(cls, conditions: Iterable[tuple[Part, ...]], schema: Schema) -> ConditionEncoder:
        """The vocabulary of these conditions. Raises InputError when a part has no embedding or no readable SMILES."""
        conditions = list(conditions)
        parts = {part.name: part for condition in conditions for part in condition}
        if schema.embeddings is not None:
            names, vectors = read_embeddings(schema.embeddings)
            encoder = cls("embedding", names, vectors)
            for part in parts.values():
                encoder._vector(part)
            return encoder
        names = tuple(sorted(parts))
        described = functools.partial(fingerprint, kind=schema.fingerprint)
        for part in dict.fromkeys(part for condition in conditions for part in condition):
            one, other = part.smiles or "", parts[part.name].smiles or ""
            if one != other and (described(one) != described(other)).any():
                raise InputError(f"{part.name!r} has two SMILES of different drugs, {one!r} and {other!r}: rename one")
        if schema.smiles_key is not None:
            vectors = [described(parts[name].smiles or "") for name in names]
            kind: Literal["smiles", "morgan"] = "morgan" if schema.fingerprint == "morgan" else "smiles"
            return cls(kind, names, np.stack(vectors) if vectors else np.zeros((0, N_BITS), np.float32))
        return cls("one-hot", names, np.eye(len(names), dtype=np.float32))

    def with_names_of(self, other: ConditionEncoder) -> tuple[ConditionEncoder, np.ndarray]:
        """The names of both, and which feature of the result each feature of this one is (F,).

        Raises InputError when both describe conditions in different ways.
        """
        if self.kind != other.kind or (self.kind != "one-hot" and self.vectors.shape[1] != other.vectors.shape[1]):
            raise InputError("the data describe their conditions otherwise than the model: use the same schema")
        names = tuple(sorted({*self.names, *other.names}))
        if self.kind == "one-hot":
            place = np.array([names.index(name) for name in self.names], dtype=int)
            return ConditionEncoder("one-hot", names, np.eye(len(names), dtype=np.float32)), place
        for name in {*self.names} & {*other.names}:
            if (self.vectors[self.names.index(name)] != other.vectors[other.names.index(name)]).any():
                raise InputError(
                    f"{name!r} is described by other numbers than in the model: rename one, or give its own"
                )
        vectors = {name: of.vectors[i] for of in (other, self) for i, name in enumerate(of.names)}
        both = np.stack([vectors[name] for name in names]) if names else self.vectors
        return ConditionEncoder(self.kind, names, both), np.arange(self.vectors.shape[1])

    @property
    def n_features(self) -> int:
        """1 + F, of `describe`."""
        return 1 + int(self.vectors.shape[1])

    def describe(self, parts: tuple[Part, ...]) -> np.ndarray:
        """What predictors and the network are told of a condition, (1 + F,): its total strength, then `encode`."""
        return np.concatenate([[np.float32(sum(part.strength for part in parts))], self.encode(parts)])

    def describe_each(self, conditions: Sequence[tuple[Part, ...]]) -> np.ndarray:
        """`describe` of P conditions, P x (1 + F)."""
        return np.stack([self.describe(parts) for parts in conditions])

    def encode(self, parts: tuple[Part, ...]) -> np.ndarray:
        """Features (F,) of a condition. Raises InputError on a part that training gives no way to describe."""
        total = np.zeros(self.vectors.shape[1], dtype=np.float32)
        for part in parts:
            total += np.float32(part.strength) * self._vector(part)
        return total

    def _vector(self, part: Part) -> np.ndarray:
        known = np.asarray(self.vectors[self.names.index(part.name)]) if part.name in self.names else None
        if self.kind in ("smiles", "morgan") and part.smiles is not None:
            described = fingerprint(part.smiles, kind="morgan" if self.kind == "morgan" else "feature-morgan")
            if known is not None and (described != known).any():
                raise InputError(
                    f"{part.name!r} was another drug in training than {part.smiles!r} is: give its SMILES of there, or "
                    "another name"
                )
            return described
        if known is not None:
            return known
        near = difflib.get_close_matches(part.name, self.names, n=3) or list(self.names[:5]) or ["none"]
        remedy = {
            "one-hot": "train with it, or describe parts with --embeddings",
            "smiles": "give its SMILES",
            "morgan": "give its SMILES",
            "embedding": "add a row for it to the embeddings",
        }[self.kind]
        raise InputError(
            f"condition {part.name!r} is unknown ({len(self.names)} are known, such as "
            f"{', '.join(map(repr, near))}): {remedy}"
        )


def time_features(time: float, span: tuple[float, float]) -> np.ndarray:
    """Features (7,) of a time: its position p in the training span, and sin and cos of pi p, 2 pi p, 4 pi p."""
    width = span[1] - span[0]
    position = (time - span[0]) / width if width > 0 else 0.0
    angles = np.pi * position * np.array([1.0, 2.0, 4.0])
    return np.concatenate([[position], np.sin(angles), np.cos(angles)]).astype(np.float32)
