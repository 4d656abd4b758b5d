"""Conditions: one spelling and one vector whatever the order; strengths, signs, and upstream's fingerprints."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squidiff.config import InputError, Schema
from squidiff.data.conditions import (
    ConditionEncoder,
    Part,
    canonical_label,
    fingerprint,
    parse_condition,
    read_embeddings,
    split_parts,
    time_features,
)

UPSTREAM = Path(__file__).parent / "upstream"
GENES = Schema(condition_key="condition", control="ctrl", dose_key="dose", direction_key="direction")
DRUGS = Schema(condition_key="drug", control="DMSO", dose_key="dose", smiles_key="smiles")


def gene_parts(condition: str, dose: object = "1", direction: str = "activation") -> tuple[Part, ...]:
    return parse_condition({"condition": condition, "dose": dose, "direction": direction}, GENES)


# --- text to parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A+B", ["A", "B"]),
        (" A + B+C ", ["A", "B", "C"]),
        ("C[NH3+]", ["C[NH3+]"]),
        ("[Na+].[Cl-]+C[NH3+]+[Ca+2]", ["[Na+].[Cl-]", "C[NH3+]", "[Ca+2]"]),
        ("A++B", ["A", "", "B"]),
        ("", [""]),
    ],
)
def test_parts_are_split_outside_brackets(text: str, parts: list[str]) -> None:
    assert split_parts(text) == parts


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.from_regex(r"[A-Za-z0-9]{1,4}(\[[A-Z+]{1,3}\])?", fullmatch=True), min_size=1, max_size=5))
def test_what_is_joined_is_split_again(parts: list[str]) -> None:
    assert split_parts("+".join(parts)) == parts
    assert split_parts(canonical_label(tuple(Part(name) for name in parts))) == parts


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_the_parts_does_not_matter(order: tuple[int, ...]) -> None:
    names, doses, directions = ("KLF1", "BAK1", "MAP2K6"), ("0.5", "10", "1"), ("knock-out", "activation", "crispri")
    first = gene_parts("+".join(names), "+".join(doses), "+".join(directions))
    shuffled = gene_parts(*("+".join(values[i] for i in order) for values in (names, doses, directions)))
    assert shuffled == first
    assert canonical_label(shuffled) == "BAK1 @ 10 activation + KLF1 @ 0.5 knock-out + MAP2K6 @ 1 crispri"
    encoder = ConditionEncoder.fit([first], GENES)
    # by hand: strength log10(dose + 1) with the sign of the direction, in the sorted vocabulary
    by_hand = [math.log10(11), -math.log10(1.5), -math.log10(2)]
    np.testing.assert_allclose(encoder.encode(shuffled), by_hand, rtol=1e-6)
    assert np.array_equal(encoder.encode(shuffled), encoder.encode(first))


def test_features_do_not_depend_on_the_order_of_parts_made_by_hand() -> None:
    parts = (Part("A", 3.0), Part("B"), Part("C", 0.2, "knock-out"))
    encoder = ConditionEncoder.fit([parts], GENES)
    for order in itertools.permutations(parts):
        np.testing.assert_allclose(encoder.encode(order), encoder.encode(parts), rtol=1e-6)


def test_one_dose_and_one_direction_serve_all_parts() -> None:
    assert gene_parts("A+B", "3", "knock-out") == gene_parts("A+B", "3+3", "knock-out+knock-out")
    assert gene_parts("A", 3, "knock-out") == gene_parts("A", "3.0", "Knock-Out")  # a number will do, and capitals


@pytest.mark.parametrize("order", [("A+B", "0+10"), ("B+A", "10+0"), ("B", "10"), ("B+A+C", "10+0+0.0")])
def test_a_part_of_no_dose_beside_others_is_not_there(order: tuple[str, str]) -> None:
    """How tables of two drugs at several doses each write a drug alone."""
    assert canonical_label(gene_parts(*order)) == "B @ 10 activation"


def test_where_no_part_has_a_dose_all_are_kept() -> None:
    assert canonical_label(gene_parts("A+B", "0+0")) == "A @ 0 activation + B @ 0 activation"


def test_control_has_no_parts_whatever_else_its_row_says() -> None:
    control = parse_condition({"drug": "DMSO", "dose": "nan", "smiles": ""}, DRUGS)
    assert control == ()
    assert canonical_label(control) == ""
    assert ConditionEncoder.fit([control, (Part("A"), Part("B"))], GENES).encode(control).tolist() == [0.0, 0.0]
    assert parse_condition({"time": "3"}, Schema(time_key="time")) == ()


@pytest.mark.parametrize(
    ("dose", "direction", "strength"),
    [
        (None, None, 1.0),
        (0.0, None, 0.0),
        (9.0, None, 1.0),
        (0.1, None, math.log10(1.1)),
        (99.0, "activation", 2.0),
        (99.0, "overexpression", 2.0),
        (99.0, "crispra", 2.0),
        (99.0, "knock-down", -2.0),
        (99.0, "knock-out", -2.0),
        (99.0, "crispri", -2.0),
        (None, "knock-out", -1.0),
    ],
)
def test_strength_is_the_logarithm_of_the_dose_with_the_sign_of_the_direction(
    dose: float | None, direction: str | None, strength: float
) -> None:
    assert Part("A", dose, direction).strength == pytest.approx(strength, abs=1e-15)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("A+", "1", "activation"), r"^condition 'A\+' has an empty part: write parts as A\+B$"),
        (("A+B+C", "1+2", "activation"), r"^condition 'A\+B\+C' has 3 parts but dose '1\+2' has 2$"),
        (("A", "1+2", "activation"), "^condition 'A' has 1 parts but dose '1.2' has 2$"),
        (("A+B", "1", "activation+activation+activation"), "has 2 parts but direction .* has 3$"),
        (("A", "much", "activation"), "^dose 'much' of condition 'A' is not a number: write"),
        (("A", "1_0", "activation"), "^dose '1_0' of condition 'A' is not a number: write"),
        (("A", "\uff11\uff10", "activation"), "of condition 'A' is not a number: write"),
        (("A", "-1", "activation"), "^dose '-1' of condition 'A' must be a number of 0 or more$"),
        (("A", "nan", "activation"), "^dose 'nan' of condition 'A' must be a number of 0 or more$"),
        (("A", "inf", "activation"), "^dose 'inf' of condition 'A' must be a number of 0 or more$"),
        (("A", "1", "sideways"), "^direction 'sideways' is unknown: use one of activation, crispra, "),
    ],
)
def test_a_condition_that_cannot_be_read_is_refused(values: tuple[str, str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        gene_parts(*values)


def test_every_drug_needs_its_own_smiles() -> None:
    with pytest.raises(InputError, match=r"^condition 'a\+b' has 2 parts but smiles 'CCO' has 1$"):
        parse_condition({"drug": "a+b", "dose": "1", "smiles": "CCO"}, DRUGS)


# --- parts to features


def test_one_hot_features_are_sums_over_the_parts() -> None:
    seen = [(Part("B"), Part("A")), (Part("C"),), ()]
    encoder = ConditionEncoder.fit(seen, GENES)
    assert encoder.names == ("A", "B", "C")
    assert [encoder.encode(parts).tolist() for parts in seen] == [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(encoder.encode((Part("A", 99.0), Part("A"))), [3.0, 0.0, 0.0])


def test_an_unknown_part_is_refused_with_those_that_are_spelled_alike() -> None:
    encoder = ConditionEncoder.fit([(Part("KLF1"), Part("MAPK1")), (Part("BAK1"),)], GENES)
    with pytest.raises(InputError, match=r"^condition 'KLF2' is unknown .*3 are known, such as 'KLF1'\): train"):
        encoder.encode((Part("KLF2"),))
    with pytest.raises(InputError, match="such as 'BAK1', 'KLF1', 'MAPK1'"):  # nothing alike: those there are
        encoder.encode((Part("BAK1"), Part("xyz")))


def embeddings_csv(folder: Path, text: str) -> str:
    path = folder / "embeddings.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def with_embeddings(path: str) -> Schema:
    return Schema(condition_key="condition", control="ctrl", embeddings=path)


def test_embeddings_describe_parts_that_training_has_not_seen(tmp_path: Path) -> None:
    schema = with_embeddings(embeddings_csv(tmp_path, "name,x,y\nA,1,2\nB,-0.5,4\n7,0,1e-3\n"))
    names, vectors = read_embeddings(str(schema.embeddings))
    assert names == ("A", "B", "7")
    np.testing.assert_array_equal(vectors, np.array([[1, 2], [-0.5, 4], [0, 1e-3]], dtype=np.float32))
    encoder = ConditionEncoder.fit([(Part("A"),)], schema)
    np.testing.assert_allclose(encoder.encode((Part("A"), Part("B", 99.0))), [1 - 2 * 0.5, 2 + 2 * 4])
    with pytest.raises(InputError, match=r"^condition 'C' is unknown .*: add a row for it to the embeddings$"):
        encoder.encode((Part("C"),))


def test_a_training_condition_without_an_embedding_is_refused(tmp_path: Path) -> None:
    schema = with_embeddings(embeddings_csv(tmp_path, "name,x\nKLF1,1\n"))
    with pytest.raises(InputError, match=r"condition 'KLF2' is unknown .*such as 'KLF1'"):
        ConditionEncoder.fit([(Part("KLF1"),), (Part("KLF2"),)], schema)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,x\nA,1\nA,2\n", "names a part twice: 'A'$"),
        ("name,x,y\nA,1,\nB,1,2\n", "at least one column of numbers and no gaps$"),
        ("name,x\nA,inf\n", "at least one column of numbers and no gaps$"),
        ("name,x\nA,1e300\n", "at least one column of numbers and no gaps$"),
        ("name\nA\nB\n", "at least one column of numbers and no gaps$"),
        ("name;x\nA;1\n", "has semicolons between its columns: write it with commas$"),
        ("name\tx\nA\t1\n", "has tabs between its columns: write it with commas$"),
        ("x,y\nA,1,2\nB,3,4\n", "has rows of more fields than its header: name every column, also the first$"),
        ("name,x\nA,1+2j\n", "cannot be read as a table of names and numbers: "),
        ("name,x\nA,many\n", "cannot be read as a table of names and numbers: "),
        ("name,x\nA,1\nB,1,2,3,4\n", "cannot be read as a table of names and numbers: "),
        ("", "cannot be read as a table of names and numbers: "),
    ],
)
def test_embeddings_that_cannot_be_used_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"^embeddings file .*embeddings\.csv .*{message}"):
        read_embeddings(embeddings_csv(tmp_path, text))


def test_an_embeddings_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv does not exist$"):
        read_embeddings(str(tmp_path / "none.csv"))


# --- drugs


@pytest.fixture
def rdkit() -> None:
    pytest.importorskip("rdkit", reason="SMILES need rdkit, the extra 'drug'")


@pytest.mark.usefixtures("rdkit")
def test_a_drug_at_a_dose_is_encoded_as_upstream_does() -> None:
    with np.load(UPSTREAM / "drug_io.npz") as oracle:
        smiles, doses, encoded = oracle["smiles"], oracle["dose"], oracle["drug_dose"]
    rows = [
        parse_condition({"drug": f"drug {s}", "dose": str(d), "smiles": str(s)}, DRUGS)
        for s, d in zip(smiles, doses, strict=True)
    ]
    encoder = ConditionEncoder.fit(rows, DRUGS)
    assert len(set(smiles)) == len(encoder.names) == 3
    np.testing.assert_allclose(np.stack([encoder.encode(parts) for parts in rows]), encoded, rtol=1e-6)


@pytest.mark.usefixtures("rdkit")
def test_a_combination_is_encoded_as_upstream_does() -> None:
    with np.load(UPSTREAM / "drug_combination.npz") as oracle:
        for smiles, dose, encoded in zip(oracle["smiles"], oracle["dose"], oracle["encoding"], strict=True):
            parts = parse_condition({"drug": "a+b", "dose": str(dose), "smiles": str(smiles)}, DRUGS)
            found = ConditionEncoder.fit([parts], DRUGS).encode(parts)
            np.testing.assert_allclose(found, encoded, rtol=1e-6)
            turned = parse_condition({"drug": "b+a", "dose": dose, "smiles": "+".join(smiles.split("+")[::-1])}, DRUGS)
            assert turned == parts


@pytest.mark.usefixtures("rdkit")
def test_a_new_drug_needs_its_smiles_and_a_known_one_does_not() -> None:
    aspirin, ethanol = Part("aspirin", smiles="CC(=O)OC1=CC=CC=C1C(=O)O"), Part("ethanol", smiles="CCO")
    encoder = ConditionEncoder.fit([(aspirin,)], DRUGS)
    np.testing.assert_array_equal(encoder.encode((Part("aspirin"),)), fingerprint(str(aspirin.smiles)))
    np.testing.assert_array_equal(encoder.encode((ethanol,)), fingerprint("OCC"))  # the same molecule
    with pytest.raises(InputError, match=r"^condition 'aspirine' is unknown .*such as 'aspirin'.*: give its SMILES$"):
        encoder.encode((Part("aspirine"),))
    with pytest.raises(InputError, match=r"^'aspirin' was another drug in training than 'CCO' is: give its SMILES"):
        encoder.encode((Part("aspirin", smiles="CCO"),))


@pytest.mark.usefixtures("rdkit")
@pytest.mark.parametrize("smiles", ["C1CC", "not a molecule", ""])
def test_smiles_that_do_not_parse_are_refused_in_silence(smiles: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=f"^SMILES '{smiles}' does not parse: correct it or drop its cells$"):
        fingerprint(smiles)
    assert capfd.readouterr() == ("", "")  # rdkit writes to stderr itself


# --- time


@pytest.mark.parametrize("time", [6.0, 9.0, 18.0, 30.0])
def test_time_features_are_the_position_and_its_waves(time: float) -> None:
    p = (time - 6.0) / 12.0
    expected = [p, *(math.sin(math.pi * p * k) for k in (1, 2, 4)), *(math.cos(math.pi * p * k) for k in (1, 2, 4))]
    np.testing.assert_allclose(time_features(time, (6.0, 18.0)), expected, atol=1e-6)


def test_a_single_time_has_position_zero() -> None:
    np.testing.assert_array_equal(time_features(5.0, (5.0, 5.0)), [0, 0, 0, 0, 1, 1, 1])


def test_a_control_part_is_no_part() -> None:
    schema = Schema(condition_key="c", control="ctrl")
    labels = ("A", "A+ctrl", "ctrl+A", "ctrl")
    assert [canonical_label(parse_condition({"c": label}, schema)) for label in labels] == ["A", "A", "A", ""]


def test_two_drugs_of_one_name_are_refused_and_two_spellings_of_one_are_not() -> None:
    pytest.importorskip("rdkit", reason="SMILES need rdkit")
    schema = Schema(condition_key="c", control="ctrl", smiles_key="s")
    spelled = [(Part("ethanol", smiles="CCO"),), (Part("ethanol", smiles="OCC"),)]
    assert ConditionEncoder.fit(spelled, schema).names == ("ethanol",)
    confused = [(Part("ethanol", smiles="CCO"),), (Part("ethanol", smiles="c1ccccc1"),)]
    with pytest.raises(InputError, match=r"^'ethanol' has two SMILES of different drugs, 'CCO' and 'c1ccccc1'"):
        ConditionEncoder.fit(confused, schema)
    halogens = [(Part("halide", smiles="CCl"),), (Part("halide", smiles="CBr"),)]
    ConditionEncoder.fit(halogens, schema)  # one halogen is as good as another, by features
    with pytest.raises(InputError, match=r"^'halide' has two SMILES of different drugs"):
        ConditionEncoder.fit(halogens, dataclasses.replace(schema, fingerprint="morgan"))


@pytest.mark.parametrize("text", ["1e+3", "1000", "1000.0", " 1000 "])
def test_a_dose_with_an_exponent_is_one_dose(text: str) -> None:
    schema = Schema(condition_key="c", control="ctrl", dose_key="d")
    (part,) = parse_condition({"c": "A", "d": text}, schema)
    assert part.dose == 1000.0


def test_a_description_is_the_strength_and_then_the_encoding() -> None:
    parts = (Part("A", 9.0), Part("B", 99.0, "knock-down"))
    encoder = ConditionEncoder.fit([parts], GENES)
    described = encoder.describe(parts)
    assert described[0] == pytest.approx(1.0 - 2.0)  # log10 of 10, and of 100 the other way
    np.testing.assert_array_equal(described[1:], encoder.encode(parts))
    assert len(described) == encoder.n_features == 3
    assert encoder.describe(()).tolist() == [0.0, 0.0, 0.0]


def test_a_part_that_stands_twice_is_no_combination() -> None:
    """Recorded: `stim+stim` was answered as twice `stim`. At doses A and A may be given one after the other."""
    one = Schema(condition_key="c", control="ctrl")
    with pytest.raises(InputError, match=r"^condition 'A\+B\+A' has 'A' twice: name each part once$"):
        parse_condition({"c": "A+B+A"}, one)
    assert len(parse_condition({"c": "ctrl+ctrl"}, one)) == 0
    assert len(gene_parts("A+A", "1+2", "activation")) == 2
