"""Upstream's sampler class, its script and its drug encoder: the numbers are upstream's, bad input is a sentence."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from squidiff.cli.upstream import sample_squidiff
from squidiff.config import PRESETS, InputError
from squidiff.estimator import Squidiff
from squidiff.legacy.cells import encode_drugs
from squidiff.legacy.sample import sample_file, sampler
from squidiff.train.upstream_checkpoint import read_upstream, write_upstream
from upstream_oracles import VARIANTS, assert_near, checkpoint, oracle, state

ROOT = Path(__file__).parents[2]


def made(variant: str, **options: Any) -> sampler:
    return sampler(checkpoint(variant), 30, 30, variant == "drug", device="cpu", **options)


@pytest.fixture
def cells() -> ad.AnnData:
    """The cells that upstream's drug model was shown, with the columns that its data have."""
    given = oracle("drug_io")
    obs = pd.DataFrame(
        {"Group": 0, "SMILES": given["smiles"], "dose": given["dose"].numpy()}, index=[f"c{i}" for i in range(12)]
    )
    return ad.AnnData(given["x_start"].numpy(), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(30)]))


def written(adata: ad.AnnData, path: Path) -> Path:
    adata.write_h5ad(path)
    return path


# --- the class


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_sample_function_gives_upstreams_samples(variant: str) -> None:
    given, tool = oracle(f"{variant}_io"), made(variant)
    sample_fn = tool.load_sample_fn()
    model = tool.load_squidiff_model()
    found = sample_fn(model, shape=(12, 30), model_kwargs={"z_mod": given["z_sem"]}, noise=given["x_T"])
    assert_near(found, given["ddim_1000"])
    drug = {"drug_dose": given["drug_dose"], "control_feature": given["control"]} if variant == "drug" else {}
    shown = sample_fn(model, shape=(12, 30), model_kwargs={"x_start": given["x_start"], **drug}, noise=given["x_T"])
    assert_near(shown, given["ddim_1000"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_inversion_is_upstreams_with_every_state_on_the_way(variant: str) -> None:
    given, tool = oracle(f"{variant}_io"), made(variant)
    found = tool.stochastic_encode(tool.model, given["x_start"], 999, {"z_mod": given["z_sem"]})
    assert_near(found["sample"], given["ddim_reverse_999"])
    assert len(found["sample_t"]) == len(found["xstart_t"]) == len(found["T"]) == 999
    assert [int(t[0]) for t in found["T"][:3]] == [0, 1, 2]
    few = tool.stochastic_encode(tool.model, given["x_start"], 3, {"z_mod": given["z_sem"]})
    assert_near(few["sample"], found["sample_t"][2])
    assert all((x0 >= 0).all() for x0 in found["xstart_t"])


def test_the_thousandth_inversion_step_leaves_only_noise() -> None:
    given, tool = oracle("autoencoder_io"), made("autoencoder")
    found = tool.stochastic_encode(tool.model, given["x_start"], 1000, {"z_mod": given["z_sem"]})
    x_t, x0 = found["sample_t"][-2], found["xstart_t"][-1]
    alpha_squared = oracle("schedule")["alphas_cumprod"][-1].item()
    assert_near(found["sample"], (x_t - alpha_squared**0.5 * x0) / (1 - alpha_squared) ** 0.5)
    with pytest.raises(InputError, match="t is 1001"):
        tool.stochastic_encode(tool.model, given["x_start"], 1001, {"z_mod": given["z_sem"]})


def test_predictions_repeat_with_the_seed_and_go_on_from_call_to_call() -> None:
    z_sem = oracle("autoencoder_io")["z_sem"]
    one, other = made("autoencoder", steps=3), made("autoencoder", steps=3)
    first, second = one.pred(z_sem, 30), one.pred(z_sem, 30)
    assert torch.equal(first, other.pred(z_sem, 30))
    assert torch.equal(second, other.pred(z_sem, 30))
    assert not torch.equal(first, second)
    assert not torch.equal(first, made("autoencoder", steps=3, seed=1).pred(z_sem, 30))


def test_a_direction_moves_the_mean_latent() -> None:
    tool, given = made("autoencoder", steps=2), oracle("autoencoder_io")
    z_sem, direction = given["z_sem"], given["z_sem"][0] - given["z_sem"][1]
    moved = tool.interp_with_direction(z_sem, 30, direction, scale=2.0, add_noise_term=False)
    point = (z_sem.mean(dim=0) + 2.0 * direction).expand(12, -1)
    assert_near(moved, made("autoencoder", steps=2).pred(point, 30))
    around = tool.sample_around_point(np.full(60, 5.0), num_samples=4000)
    assert around.mean() == pytest.approx(5.0, abs=0.01)
    assert around.std() == pytest.approx(0.7, rel=0.01)


def test_a_direction_has_noise_around_the_mean_latent_unless_told_otherwise() -> None:
    tool, other = made("autoencoder", steps=2), made("autoencoder", steps=2)
    z_sem, direction = oracle("autoencoder_io")["z_sem"], torch.ones(60)
    around = other.sample_around_point(z_sem.numpy().mean(axis=0) + 3.0, num_samples=12)
    expected = other.pred(torch.from_numpy(around.astype(np.float32)), 30)
    assert_near(tool.interp_with_direction(z_sem, 30, direction, 3.0), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_network_is_called_as_upstream_calls_it(variant: str) -> None:
    given, model = oracle(f"{variant}_io"), made(variant).model
    shown = {"x_start": given["x_start"], "drug_dose": None, "control_feature": None}
    if variant == "drug":
        shown |= {"drug_dose": given["drug_dose"], "control_feature": given["control"]}
    with torch.no_grad():
        assert_near(model(given["x_t"], given["t"], z_mod=given["z_sem"]), given["eps"])
        assert_near(model(given["x_t"], timesteps=given["t"], group=np.zeros(12), **shown), given["eps"])
    with pytest.raises(InputError, match="neither z_mod nor x_start is given"):
        model(given["x_t"], given["t"])


def test_the_sample_function_takes_upstreams_arguments() -> None:
    given, tool = oracle("autoencoder_io"), made("autoencoder", steps=3)
    kwargs = {"z_mod": given["z_sem"], "group": np.zeros(12)}
    expected = tool.sample_fn(tool.model, (12, 30), noise=given["x_T"], model_kwargs=kwargs)
    found = tool.sample_fn(tool.model, (12, 30), given["x_T"], False, None, None, kwargs, "cpu", True, 0.0)
    assert torch.equal(found, expected)
    with pytest.raises(InputError, match="eta other than 0 are not supported"):
        tool.sample_fn(tool.model, (12, 30), model_kwargs=kwargs, eta=1.0)


def test_noising_adds_i_over_t_at_step_i() -> None:
    tool, x = made("autoencoder"), torch.zeros(2000, 30)
    found = tool.get_diffused_data(tool.model, x, 4, {})
    deviations = [state.std().item() for state in found["sample_t"]]
    variance = [0.0, 0.0, 1 / 16, 5 / 16, 14 / 16]  # step 0 adds none
    assert deviations == pytest.approx([v**0.5 for v in variance], rel=0.02)
    assert len(found["T"]) == len(found["xstart_t"]) == 4


@pytest.mark.parametrize("as_stored", [np.asarray, sparse.csr_matrix])
def test_the_metric_by_hand(as_stored: Any) -> None:
    truth = ad.AnnData(as_stored(np.array([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]], dtype=np.float32)))
    r2, r = made("autoencoder").cal_metric(torch.tensor([[1.0, 2.0, 4.0]]), truth)
    # means 1, 2, 4 and 1, 2, 3: squared errors 1, spread of the first around 7/3: 14/3; r = 3 / sqrt(2 * 14/3)
    assert r2 == pytest.approx(1 - 1 / (14 / 3))
    assert r == pytest.approx(3 / (2 * 14 / 3) ** 0.5)


@pytest.mark.slow
def test_the_notebooks_calls_run_as_written(tmp_path: Path) -> None:
    """From the repository's root, as upstream's README has them, but for .to('cuda')."""
    code = f"""
import numpy as np, torch, anndata as ad
import sample_squidiff
from Squidiff.scrna_datasets import Drug_dose_encoder
sampler = sample_squidiff.sampler(
    model_path = {str(checkpoint("drug"))!r}, gene_size = 30, output_dim = 30, use_drug_structure = True)
given = np.load({str(checkpoint("drug").parent / "drug_io.npz")!r})
drug = torch.tensor(Drug_dose_encoder(given['smiles'].tolist(), given['dose'].tolist()), dtype=torch.float32)
cells = torch.tensor(given['x_start'])
z_sem = sampler.model.encoder(cells, drug_dose=drug, control_feature=torch.tensor(given['control']))
assert np.abs(z_sem.detach().numpy() - given['z_sem']).max() < 1e-5
print(sampler.pred(z_sem, gene_size = 30).cpu().numpy().shape)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["(12, 30)"], done.stderr


# --- drug encodings


def test_drug_encodings_are_upstreams() -> None:
    given, joined = oracle("drug_io"), oracle("drug_combination")
    one = encode_drugs(given["smiles"].tolist(), given["dose"].tolist())
    assert_near(torch.from_numpy(one).float(), given["drug_dose"])
    both = encode_drugs(joined["smiles"].tolist(), joined["dose"].tolist())
    torch.testing.assert_close(torch.from_numpy(both), joined["encoding"], rtol=1e-6, atol=0)


def test_a_charge_is_no_joint_and_no_molecule_is_zero() -> None:
    [charged, apart, nothing] = encode_drugs(["C[N+](C)(C)C+CCO", "CCO", ""], [9.0, 9.0, 9.0], n_bits=2048)
    assert len(charged) == 2048
    assert (charged >= apart).all()
    assert charged.sum() > apart.sum()
    assert not nothing.any()


@pytest.mark.parametrize(
    ("smiles", "doses", "message"),
    [
        (["CCO", "C1CC"], [1, 1], r"^row 1: SMILES 'C1CC' does not parse"),
        (["CCO+C1CC"], [1], r"^row 0, SMILES 'CCO\+C1CC': SMILES 'C1CC' does not parse"),
        (["CCO", None], [1, 1], "^row 1 has no SMILES"),
        (["CCO"], [-1], "^row 0 has dose '-1'"),
        (["CCO"], ["high"], "^row 0 has dose 'high'"),
        (["CCO"], [float("nan")], "^row 0 has dose 'nan'"),
        (["CCO"], [1, 2], "^there are 1 SMILES and 2 doses"),
    ],
)
def test_what_cannot_be_encoded_names_its_row(smiles: list[Any], doses: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode_drugs(smiles, doses)


# --- checkpoints


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
def test_a_checkpoint_is_read_wrapped_or_not_and_written_back(key: str | None, tmp_path: Path) -> None:
    given = state("drug")
    torch.save(given if key is None else {key: given, "epoch": 3}, tmp_path / "model.pt")
    network = read_upstream(tmp_path / "model.pt")
    write_upstream(tmp_path / "again.pt", network.state_dict())
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    write_upstream(tmp_path / "another.pt", network.state_dict())
    assert (tmp_path / "another.pt").read_bytes() == (tmp_path / "again.pt").read_bytes()
    assert list(again) == list(given)
    assert all(torch.equal(again[name], given[name]) for name in given)


def test_a_checkpoint_of_several_processes_is_read(tmp_path: Path) -> None:
    torch.save({f"module.{key}": t for key, t in state("drug").items()}, tmp_path / "model.pt")
    network = read_upstream(tmp_path / "model.pt")
    assert all(torch.equal(t, network.state_dict()[key]) for key, t in state("drug").items())


@pytest.mark.parametrize(
    "save", [torch.save, *(lambda v, path, n=n: path.write_bytes(pickle.dumps(v, protocol=n)) for n in (0, 2, 5))]
)
def test_a_checkpoint_with_code_is_refused_and_not_run(save: Any, tmp_path: Path) -> None:
    save({**state("drug"), "extra": Bomb(tmp_path / "exploded")}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="could run code when loaded: it is refused"):
        read_upstream(tmp_path / "model.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_checkpoint_that_was_cut_is_refused(share: float, tmp_path: Path) -> None:
    whole = checkpoint("drug").read_bytes()
    (tmp_path / "model.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"cannot be read as a checkpoint: it was cut, or is another kind of file$"):
        read_upstream(tmp_path / "model.pt")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist or is not a file"):
        read_upstream(tmp_path)
    (tmp_path / "cells.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(InputError, match="it was cut, or is another kind of file"):
        read_upstream(tmp_path / "cells.h5ad")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        read_upstream(tmp_path / "list.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt cannot be used: it is no checkpoint of upstream's network"):
        read_upstream(tmp_path / "other.pt")
    torch.save(state("drug") | {"output_layer.bias": torch.full((30,), torch.nan)}, tmp_path / "nan.pt")
    with pytest.raises(InputError, match=r"output_layer\.bias holds values that are not finite"):
        read_upstream(tmp_path / "nan.pt")


# --- the script


def run(*tokens: object) -> None:
    sample_squidiff([str(token) for token in tokens])


def test_the_script_writes_cells_with_names_and_latents(cells: ad.AnnData, tmp_path: Path) -> None:
    given = oracle("drug_io")
    data = written(cells, tmp_path / "data.h5ad")
    control = written(ad.AnnData(sparse.csr_matrix(given["control"].numpy())), tmp_path / "control.h5ad")
    out = tmp_path / "out" / "cells.h5ad"
    command = ("--model_path", checkpoint("drug"), "--data_path", data, "--control_data_path", control)
    run(*command, "--steps", 20, "--out", out, "--device", "cpu")
    predicted = ad.read_h5ad(out)
    assert_near(torch.from_numpy(predicted.obsm["X_z_sem"]), given["z_sem"])
    assert list(predicted.obs_names) == list(cells.obs_names)
    assert list(predicted.var_names) == list(cells.var_names)
    assert predicted.obs["SMILES"].tolist() == cells.obs["SMILES"].tolist()
    same = sample_file(checkpoint("drug"), data, control, steps=20, device="cpu")
    assert np.array_equal(predicted.X, same.X)


def test_a_drug_model_without_controls_says_what_it_takes_for_them(
    cells: ad.AnnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = written(cells, tmp_path / "data.h5ad")
    model = tmp_path / "model.pt"
    model.write_bytes(checkpoint("drug").read_bytes())
    for steps, seed in ((2, 0), (3, 0), (2, 1)):
        run("--model_path", model, "--data_path", data, "--steps", steps, "--seed", seed, "--device", "cpu")
    said = " ".join(capsys.readouterr().out.split())
    assert "data.h5ad are taken for control cells; if they were treated, give --control_data_path" in said
    made = sorted(path.name for path in tmp_path.glob("*_steps_*.h5ad"))
    assert made == [f"data_model_{what}.h5ad" for what in ("2_steps_seed_0", "2_steps_seed_1", "3_steps_seed_0")]


def test_every_step_of_sampling_is_told(cells: ad.AnnData, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    data = written(cells, tmp_path / "data.h5ad")
    sample_file(checkpoint("drug"), data, steps=3, on_step=lambda i, n: told.append((i, n)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_script_alone_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said == (
        "squidiff: sample_squidiff.py needs a checkpoint and cells: --model_path MODEL.pt --data_path CELLS.h5ad"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gene_size", 31), "is a model of 30 genes, but gene_size is 31: give 30"),
        (("--steps", 1001), "1001 sampling steps are asked for, but the model has 1000"),
        (("--steps", "few"), "argument --steps: invalid int value: 'few'"),
        (("--out", "cells.txt"), "--out is cells.txt: name an .h5ad file"),
        (("--out", "data.h5ad/out.h5ad"), "data.h5ad is a file, not a folder"),
        (("--nonsense", 1), "unrecognized arguments: --nonsense 1"),
        (("--seed", -1), "--seed is -1: it must be from 0"),
        (("--data_path", "nowhere.h5ad"), "nowhere.h5ad does not exist or is not a file"),
        (("--model_path", "nowhere.pt"), "nowhere.pt does not exist or is not a file"),
        (("--control_data_path", "short.h5ad"), "controls are paired by row, so both must have as many"),
        (("--data_path", "unnamed.h5ad"), "column 'SMILES' is missing in obs of unnamed.h5ad"),
        (("--data_path", "undosed.h5ad"), "column 'dose' is missing in obs of undosed.h5ad"),
        (("--data_path", "unread.h5ad"), "obs of unread.h5ad, row 3: SMILES 'C1CC' does not parse"),
        (("--data_path", "narrow.h5ad"), "narrow.h5ad has 29 genes, but the model 30"),
    ],
)
def test_bad_input_is_one_sentence(
    flags: tuple[object, ...],
    message: str,
    cells: ad.AnnData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    written(cells, Path("data.h5ad"))
    written(cells[:11].copy(), Path("short.h5ad"))
    written(cells[:, :29].copy(), Path("narrow.h5ad"))
    for column, name in (("SMILES", "unnamed.h5ad"), ("dose", "undosed.h5ad")):
        bare = cells.copy()
        del bare.obs[column]
        written(bare, Path(name))
    unread = cells.copy()
    unread.obs["SMILES"] = [*cells.obs["SMILES"][:3], "C1CC", *cells.obs["SMILES"][4:]]
    written(unread, Path("unread.h5ad"))
    with pytest.raises(SystemExit) as stop:
        run("--model_path", checkpoint("drug"), "--data_path", "data.h5ad", "--out", "out.h5ad", *flags)
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("out.h5ad").exists()


def test_a_drug_without_smiles_names_its_row(cells: ad.AnnData, tmp_path: Path) -> None:
    cells.obs["SMILES"] = [*cells.obs["SMILES"][:4], None, *cells.obs["SMILES"][5:]]
    with pytest.raises(InputError, match=r"obs of .*data.h5ad, row 4 has no SMILES"):
        sample_file(checkpoint("drug"), written(cells, tmp_path / "data.h5ad"), steps=2)


def test_the_class_refuses_what_the_checkpoint_is_not() -> None:
    with pytest.raises(InputError, match="output_dim is 31: give 30"):
        sampler(checkpoint("drug"), 30, 31, True)
    with pytest.raises(InputError, match="was trained with drug structure, but use_drug_structure is False"):
        sampler(checkpoint("drug"), 30, 30, False)
    with pytest.raises(InputError, match="gene_size is 12, but the model has 30 genes"):
        made("autoencoder").pred(torch.zeros(2, 60), gene_size=12)
    tool = made("autoencoder")
    with pytest.raises(InputError, match="has neither z_mod nor x_start"):
        tool.load_sample_fn()(tool.model, shape=(2, 30))


def test_a_model_of_other_levels_is_not_sampled_with_upstreams(cells: ad.AnnData, tmp_path: Path) -> None:
    data = written(cells, tmp_path / "cells.h5ad")
    small = {"width": 8, "n_latent": 4, "n_blocks": 1, "n_train_steps": 2, "batch_size": 4}
    for name, levels in (("usual", {}), ("cosine", {"noise_schedule": "cosine"}), ("few", {"n_diffusion_steps": 50})):
        config = dataclasses.replace(PRESETS["upstream"], **small, **levels)
        Squidiff(config=config, device="cpu").fit(cells, out=tmp_path / name)
    assert sample_file(tmp_path / "usual" / "model.pt", data, steps=2).n_obs == 12
    turned = sample_file(tmp_path / "usual" / "model.pt", written(cells[:, ::-1].copy(), tmp_path / "t.h5ad"), steps=2)
    assert np.array_equal(turned.X, sample_file(tmp_path / "usual" / "model.pt", data, steps=2).X)
    assert list(turned.var_names) == list(cells.var_names)  # a run knows its genes
    with pytest.raises(InputError, match=r"model.pt was trained with 1,000 cosine steps, but .* use squidiff predict"):
        sample_file(tmp_path / "cosine" / "model.pt", data, steps=2)
    with pytest.raises(InputError, match="was trained with 50 linear steps"):
        sampler(tmp_path / "few" / "model.pt", 30, 30, False)
