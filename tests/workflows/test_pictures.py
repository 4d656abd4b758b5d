"""Every picture, from files as users have them, on the command line and in a notebook."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

import squidiff as sq
from squidiff.cli.plot import plot
from squidiff.config import InputError, Schema
from squidiff.workflows.pictures import KINDS

SCHEMA = sq.Schema(condition_key="drug", control="DMSO", context_keys=("line",), time_key="day", dose_key="dose")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two lines, three doses, two days: true cells, the same with a little noise as predicted, and training cells."""
    folder = tmp_path_factory.mktemp("cells")
    rng = np.random.default_rng(0)
    base, change = rng.gamma(2.0, 1.0, 12), rng.normal(size=12)
    rows = [(line, dose, day) for line in ("A", "<b>") for dose in (0, 1, 10) for day in (1.0, 2.0)]
    obs = pd.DataFrame(np.repeat(np.array(rows, dtype=object), 15, axis=0), columns=["line", "dose", "day"])
    obs["drug"] = np.where(obs["dose"] == 0, "DMSO", "imatinib")
    obs[["dose", "day"]] = obs[["dose", "day"]].astype(float)
    mean = base + np.log1p(obs[["dose"]].to_numpy()) * change + obs[["day"]].to_numpy()
    x = np.maximum(rng.normal(mean, 0.5), 0).astype(np.float32)
    cells = ad.AnnData(x, obs.set_axis(obs.index.astype(str)), pd.DataFrame(index=[f"$g_{i}$" for i in range(12)]))
    asked = (cells.obs["dose"] > 0).to_numpy()
    predicted = cells[asked].copy()
    predicted.X = np.maximum(predicted.X + rng.normal(0, 0.1, predicted.shape), 0).astype(np.float32)
    named = {"predicted": predicted, "truth": cells[asked].copy(), "train": cells.copy()}
    for name, adata in named.items():
        adata.uns.pop("squidiff_schema", None)
        adata.write_h5ad(folder / f"{name}.h5ad")
    sq.compare({"ours": predicted}, named["truth"], SCHEMA, train=cells).to_csv(folder / "metrics.csv", index=False)
    config = sq.Config(width=16, n_latent=4, n_train_steps=2, batch_size=16)
    sq.Squidiff(SCHEMA, config).fit(cells, out=folder / "run")
    return {name: folder / f"{name}.h5ad" for name in named} | {"scores": folder, "run": folder / "run"}


NEEDS = {
    "loss": ("run",),
    "latent": ("run", "train"),
    "scores": ("scores",),
    "compared": ("scores",),
    "quality": ("predicted", "truth"),
    "violins": ("predicted", "truth"),
    "embedding": ("predicted", "truth"),
    "response": ("predicted", "truth"),
    "dose": ("predicted", "truth"),
    "trajectory": ("predicted", "truth"),
}
WITHOUT_CELLS = ("loss", "scores", "compared", "latent")


@pytest.mark.parametrize("which", ["truth", "train"])
def test_files_in_other_units_are_not_drawn_beside_each_other(which: str, files: dict[str, Path]) -> None:
    cells = {name: ad.read_h5ad(files[name]) for name in ("predicted", "truth", "train")}
    cells[which].X = np.rint(np.expm1(cells[which].X))
    with pytest.raises(InputError, match=r"holds raw counts, but|, but the training data raw counts: give both in one"):
        sq.pl.quality(cells["predicted"], cells["truth"], train=cells["train"], schema=SCHEMA)


def test_genes_of_one_name_are_not_drawn(files: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match="Variable names are not unique"):
        cells = {name: ad.read_h5ad(files[name])[:, [0, 0, 1]].copy() for name in ("predicted", "truth")}
    with pytest.raises(InputError, match="gene names of the prediction are not unique"):
        sq.pl.quality(cells["predicted"], cells["truth"], schema=SCHEMA)


@pytest.mark.parametrize("kind", ["embedding", "latent"])
def test_a_seed_must_be_one(kind: str, files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="--seed is -1"):
        KINDS[kind](*(files[name] for name in NEEDS[kind]), seed=-1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_every_kind_is_written_as_png_and_as_vectors(
    kind: str, files: dict[str, Path], tmp_path: Path
) -> None:
    options = {} if kind in WITHOUT_CELLS else {"train": files["train"], "schema": SCHEMA}
    plot(kind, tuple(files[name] for name in NEEDS[kind]), out=tmp_path / kind, **options)
    assert (tmp_path / f"{kind}.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(tmp_path / f"{kind}.png") as image:
        assert len(image.convert("L").getcolors() or range(999)) > 20  # not an empty canvas


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_notebook_gets_axes_that_pyplot_shows(kind: str, files: dict[str, Path]) -> None:
    options = {} if kind in WITHOUT_CELLS else {"train": files["train"], "schema": SCHEMA}
    n_before = len(plt.get_fignums())
    axes = getattr(sq.pl, kind)(*(files[name] for name in NEEDS[kind]), **options)
    first = axes[0] if isinstance(axes, list) else axes
    assert isinstance(first, plt.Axes)
    assert len(plt.get_fignums()) == n_before + 1
    plt.close("all")


@pytest.mark.slow
def test_a_notebook_is_left_no_empty_figure_where_there_is_nothing_to_draw(files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="none of the 12 predicted genes"):
        sq.pl.quality(files["predicted"], files["truth"], schema=SCHEMA, genes=["TP53"])
    assert plt.get_fignums() == []


@pytest.mark.slow
def test_the_dose_curve_holds_control_and_the_doses_of_one_line(files: dict[str, Path]) -> None:
    figure = KINDS["dose"](files["predicted"], files["truth"], train=files["train"], schema=SCHEMA)
    train = ad.read_h5ad(files["train"])
    axes = figure.axes[0]
    gene = train.var_names.get_loc(axes.get_title("left"))
    by_label = {container.get_label(): container[0].get_xydata() for container in axes.containers}
    assert by_label["predicted"][:, 0].tolist() == [1.0, 10.0]
    of_line = train[(train.obs["line"] == "A") & (train.obs["day"] == 1.0)]
    expected = [(d, of_line[of_line.obs["dose"] == d].X[:, gene].mean()) for d in (0, 1, 10)]
    np.testing.assert_allclose(by_label["training cells"], expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "names", "options", "message"),
    [
        ("quality", ("predicted",), {}, r"plot quality takes PREDICTED TRUTH: 1 file is named"),
        ("violins", ("predicted", "truth"), {}, "plot violins needs --train"),
        ("quality", ("predicted", "truth"), {"color": "line"}, "--color has no use with plot quality"),
        ("quality", ("predicted", "truth"), {"population": ("C",)}, r"--population is 'C': there are 'A, imatinib @ 1"),
        ("quality", ("predicted", "truth"), {"population": ("C", "D")}, "given 2 times"),
        ("scores", ("scores",), {"method": ("theirs",)}, r"--method is 'theirs': there are 'ours'"),
        ("scores", ("truth",), {}, "cannot be read as a table of scores"),
        ("scores", ("scores",), {"metric": ("nothing",)}, "none of the metrics nothing"),
        ("latent", ("run", "train"), {"color": "nothing"}, "no column 'nothing'"),
        ("embedding", ("predicted", "truth"), {"method": ("tsne",)}, "choose pca or umap"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_sentence(
    kind: str, names: tuple[str, ...], options: dict[str, object], message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    schema = {} if kind in WITHOUT_CELLS else {"schema": SCHEMA}
    with pytest.raises(InputError, match=message):
        plot(kind, tuple(files[name] for name in names), out=tmp_path / "a.png", **schema, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["quality", "violins", "embedding", "response"])
def test_where_there_is_no_control_no_picture_speaks_of_one(kind: str) -> None:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"day": np.repeat([0.0, 1.0, 2.0], 30)}, index=[f"cell {i}" for i in range(90)])
    cells = ad.AnnData(rng.poisson(1 + obs["day"].to_numpy()[:, None], (90, 8)).astype(np.float32), obs=obs)
    then, others = cells[(obs["day"] == 1).to_numpy()].copy(), cells[(obs["day"] != 1).to_numpy()].copy()
    figure = KINDS[kind](then, then.copy(), train=others, schema=Schema(time_key="day"))
    said = " ".join(text.get_text() for text in figure.findobj(Text))
    assert "source cells" in said
    assert "control" not in said
