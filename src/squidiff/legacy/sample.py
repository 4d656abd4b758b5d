"""Upstream's sampler class with its methods, arguments and results, over our network and samplers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

from squidiff.config import InputError, NoiseLevel, check_seed
from squidiff.diffusion.samplers import invert_ddim
from squidiff.diffusion.schedule import StepSchedule
from squidiff.estimator.upstream import Decoder
from squidiff.legacy.beside import USUAL, Beside, beside
from squidiff.legacy.cells import DOSE, SMILES, dense, drugs_of, in_order_of, read_paired_controls, read_upstream_cells
from squidiff.legacy.flags import Say
from squidiff.model.upstream import UpstreamDenoiser, UpstreamNetwork
from squidiff.train.processes import find_device
from squidiff.train.upstream_checkpoint import read_upstream

N_STEPS = USUAL.n_diffusion_steps
"""Of upstream's diffusion. Its sampler knows no other number, whatever the model was trained with."""


class sampler:
    """Upstream's class of that name: `sampler(model_path, gene_size, output_dim, use_drug_structure)`.

    `steps=None` is upstream's result, all 1,000 steps of DDIM; fewer steps are taken with DPM-Solver++(2M). Noise comes
    from `seed`, and not from the process's random state. A size of None is the checkpoint's. Raises InputError when the
    checkpoint is of other sizes, or lies in a run of ours that was trained with other levels.
    """

    def __init__(
        self,
        model_path: str | Path,
        gene_size: int | None,
        output_dim: int | None,
        use_drug_structure: bool | None,
        *,
        steps: int | None = None,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        check_seed(seed)
        path = Path(model_path)
        self.model = read_upstream(path).to(find_device(device))
        _require_sizes(self.model, path, gene_size, output_dim, use_drug_structure)
        self.beside = beside(path)
        _require_usual_levels(self.beside, path)
        self.schedule = StepSchedule.named(USUAL.noise_schedule, N_STEPS)
        self.n_steps = N_STEPS if steps is None else steps
        self.schedule.sampling_steps(self.n_steps)  # raises where there are not as many
        self.sample_fn = self._ddim_sample_loop
        self._noise = torch.Generator().manual_seed(seed)
        self._rng = np.random.default_rng(seed)

    def load_squidiff_model(self) -> UpstreamNetwork:
        return self.model

    def load_sample_fn(self) -> Any:
        """`sample_fn(model, shape=(N, G), model_kwargs={"z_mod": z_sem}, noise=None)`."""
        return self.sample_fn

    def pred(
        self, z_sem: torch.Tensor, gene_size: int, on_step: Callable[[int, int], None] | None = None
    ) -> torch.Tensor:
        """Cells (N x G) of latents (N x Z), each from noise of its own."""
        _require_genes(self.model, gene_size)
        x_t = torch.randn((z_sem.shape[0], gene_size), generator=self._noise)
        return self._decode(self.model, _latents(self.model, {"z_mod": z_sem}), x_t, on_step)

    def interp_with_direction(
        self,
        z_sem_origin: torch.Tensor,
        gene_size: int,
        direction: torch.Tensor,
        scale: float = 1,
        add_noise_term: bool = True,
    ) -> torch.Tensor:
        """As many cells (N x G) as z_sem_origin has, all of the mean latent + scale * direction.

        `add_noise_term` adds 0.7 N(0, I) to the latent of each cell. It is upstream's default and may be far more than
        the direction itself: compare with False.
        """
        origin = z_sem_origin.detach().cpu().numpy()
        point = origin.mean(axis=0) + direction.detach().cpu().numpy() * scale
        latents = self.sample_around_point(point, len(origin)) if add_noise_term else np.tile(point, (len(origin), 1))
        return self.pred(torch.from_numpy(latents.astype(np.float32)), gene_size)

    def sample_around_point(self, point: np.ndarray, num_samples: int = 1, scale: float = 0.7) -> np.ndarray:
        """point (Z,) + scale N(0, I), num_samples x Z."""
        return point + scale * self._rng.standard_normal((num_samples, point.shape[0]))

    def stochastic_encode(
        self, model: UpstreamNetwork, x: torch.Tensor, t: int, model_kwargs: Mapping[str, torch.Tensor]
    ) -> dict[str, Any]:
        """x (N x G) inverted over steps 0 to t - 1: the last state, all states, the x0 predicted on the way, steps."""
        if not 1 <= t <= N_STEPS:
            raise InputError(f"t is {t}: the inversion goes over 1 to {N_STEPS} steps")
        x = x.to(model.device, torch.float32)
        steps = list(range(t))
        nothing_left = NoiseLevel(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
        end = self.schedule.level(t) if t < N_STEPS else nothing_left
        levels = [end, *(self.schedule.level(step) for step in reversed(steps))]
        denoise = UpstreamDenoiser(model, levels[1:], steps[::-1]).bind(_latents(model, model_kwargs))
        predicted: list[torch.Tensor] = []

        def remembering(x_t: torch.Tensor, level: NoiseLevel) -> Any:
            prediction = denoise(x_t, level)
            predicted.append(prediction.x0)
            return prediction

        states = list(invert_ddim(remembering, x, levels))
        times = [torch.full((len(x),), step, device=x.device) for step in steps]
        return {"sample": states[-1], "sample_t": states, "xstart_t": predicted, "T": times}

    def get_diffused_data(
        self, model: UpstreamNetwork, x: torch.Tensor, t: int, model_kwargs: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, Any]:
        """x with noise i / t added at each of t steps: upstream's picture of noising, not its diffusion."""
        sample, states, times = x, [x], []
        for i in range(t):
            noise = torch.randn(x.shape, generator=self._noise).to(x)
            sample = sample + noise * (i / t)
            states.append(sample.cpu())
            times.append(torch.full((x.shape[0],), i, device=x.device))
        return {"sample": sample, "sample_t": states, "xstart_t": states[1:], "T": times}

    def cal_metric(self, x1: torch.Tensor, x2: ad.AnnData) -> tuple[float, float]:
        """R^2 and Pearson's r of the mean profiles of predicted (tensor) and true cells (AnnData)."""
        from scipy.stats import pearsonr
        from sklearn.metrics import r2_score

        predicted = x1.detach().cpu().numpy().mean(axis=0)
        true = np.asarray(x2.X.mean(axis=0)).ravel()
        return float(r2_score(predicted, true)), float(pearsonr(predicted, true).statistic)

    def _ddim_sample_loop(
        self,
        model: UpstreamNetwork,
        shape: tuple[int, int],
        noise: torch.Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: None = None,
        cond_fn: None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        eta: float = 0.0,
    ) -> torch.Tensor:
        """Cells (N x G) from noise (N x G, standard normal if None).

        `device`, `progress` and, as in upstream, `clip_denoised` have no effect: x0 is always clamped to x0 >= 0.
        """
        if denoised_fn is not None or cond_fn is not None or eta != 0:
            raise InputError("denoised_fn, cond_fn and an eta other than 0 are not supported: leave them out")
        _require_genes(model, shape[1])
        x_t = torch.randn(tuple(shape), generator=self._noise) if noise is None else noise
        z_sem = _latents(model, model_kwargs or {}).expand(shape[0], -1)
        return self._decode(model, z_sem, x_t)

    def _decode(
        self,
        model: UpstreamNetwork,
        z_sem: torch.Tensor,
        x_t: torch.Tensor,
        on_step: Callable[[int, int], None] | None = None,
    ) -> torch.Tensor:
        """All steps are taken as upstream takes them."""
        method = "ddim" if self.n_steps == N_STEPS else "dpmpp_2m"
        return Decoder(model, self.schedule, self.n_steps, method)(z_sem, x_t, on_step)


def _require_genes(model: UpstreamNetwork, gene_size: int) -> None:
    if gene_size != model.sizes.n_genes:
        raise InputError(f"gene_size is {gene_size!r}, but the model has {model.sizes.n_genes} genes")


ENCODED = ("x_start", "drug_dose", "control_feature")


@torch.no_grad()
def _latents(model: UpstreamNetwork, model_kwargs: Mapping[str, Any]) -> torch.Tensor:
    """z_mod, or what the encoder makes of x_start (and drug_dose, control_feature), on the model's device."""
    known = (name for name in ("z_mod", *ENCODED) if model_kwargs.get(name) is not None)
    given = {name: torch.as_tensor(model_kwargs[name]).to(model.device, torch.float32) for name in known}
    if "z_mod" in given:
        if given["z_mod"].shape[-1] != model.sizes.n_latent:
            raise InputError(
                f"z_mod is {given['z_mod'].shape[-1]} wide, but the model has {model.sizes.n_latent} latents"
            )
        return given["z_mod"]
    if "x_start" not in given:
        raise InputError("model_kwargs has neither z_mod nor x_start: give the latents of the cells to generate")
    parts = {name: t.split(Decoder.CELLS_AT_ONCE) for name, t in given.items()}
    chunks = (dict(zip(parts, chunk, strict=True)) for chunk in zip(*parts.values(), strict=True))
    return torch.cat([model.encoder(**chunk) for chunk in chunks])


def _require_sizes(
    model: UpstreamNetwork, path: Path, gene_size: int | None, output_dim: int | None, has_drugs: bool | None
) -> None:
    sizes = model.sizes
    for name, value in (("gene_size", gene_size), ("output_dim", output_dim)):
        if value not in (None, sizes.n_genes):
            raise InputError(f"{path} is a model of {sizes.n_genes} genes, but {name} is {value}: give {sizes.n_genes}")
    if has_drugs not in (None, sizes.has_drugs):
        was = "with" if sizes.has_drugs else "without"
        raise InputError(f"{path} was trained {was} drug structure, but use_drug_structure is {has_drugs}")


def _require_usual_levels(known: Beside, checkpoint: Path) -> None:
    n_steps, schedule, _ = known
    if (n_steps, schedule) != (USUAL.n_diffusion_steps, USUAL.noise_schedule):
        raise InputError(
            f"{checkpoint} was trained with {n_steps:,} {schedule} steps, but upstream's sampler knows {N_STEPS:,} "
            f"linear ones only: use squidiff predict {checkpoint.parent}"
        )


def sample_file(
    model_path: Path,
    data_path: Path,
    control_data_path: Path | None = None,
    say: Say | None = None,
    *,
    gene_size: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    on_step: Callable[[int, int], None] | None = None,
) -> ad.AnnData:
    """Encodes the cells of a file and generates a cell from each latent; obs and genes are those of the file.

    With a drug model the encoder is shown the control cell of the same row (the cell itself without a control file,
    which is told with `say`) and the row's SMILES and dose. Sizes are read from the checkpoint unless gene_size is
    given, to be checked. `on_step(i, n)` is called after every step of sampling.
    """
    tool = sampler(model_path, gene_size, gene_size, None, steps=steps, seed=seed, device=device)
    sizes = tool.model.sizes
    cells = read_upstream_cells(data_path, sizes.n_genes, (SMILES, DOSE) if sizes.has_drugs else ())
    if tool.beside.genes is not None:
        cells = in_order_of(cells, data_path, tool.beside.genes, str(model_path))
    shown = {"x_start": dense(cells)}
    if sizes.has_drugs:
        shown["drug_dose"] = drugs_of(cells.obs, sizes.n_fingerprint, data_path)
        if control_data_path is not None:
            shown["control_feature"] = dense(read_paired_controls(control_data_path, cells, data_path))
        elif say is not None:
            say(f"the cells of {data_path} are taken for control cells; if they were treated, give --control_data_path")
    elif control_data_path is not None:
        raise InputError(f"{model_path} was trained without drug structure: --control_data_path has no use")
    z_sem = _latents(tool.model, shown)
    predicted = tool.pred(z_sem, sizes.n_genes, on_step).cpu().numpy()
    result = ad.AnnData(predicted, obs=cells.obs.copy(), var=cells.var[[]].copy())
    result.obsm["X_z_sem"] = z_sem.cpu().numpy()
    result.uns["squidiff"] = {"model": str(model_path), "steps": tool.n_steps, "seed": seed}
    return result
