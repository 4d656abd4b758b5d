"""What training leaves behind, and how it is fitted, described and rebuilt."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from squidiff.config import Batch, Config, InputError, Sampling, Schema
from squidiff.data.conditions import N_TIME_FEATURES, ConditionEncoder, time_features
from squidiff.data.dataset import Pairs
from squidiff.data.survey import Survey
from squidiff.data.table import CellTable
from squidiff.data.unit import Normalisation
from squidiff.model.network import Network, Standardisation
from squidiff.response.course import Course, courses
from squidiff.response.parts import Parts, split
from squidiff.response.populations import Population, Populations
from squidiff.response.shape import N_QUANTILES, nonzero_quantiles
from squidiff.response.stack import Anchor
from squidiff.response.uncertainty import Uncertainty
from squidiff.response.variation import N_AXES, Covariances
from squidiff.train.checkpoint import Saved, load_standardisation, require_finite_tensors
from squidiff.train.loop import RECIPE, Recipe

SMALLEST_SCALE = 0.01
"""Of a gene, as a share of the largest: what hardly varies must not be blown up into noise."""
MAX_SAMPLE = 20_000


class Sample(NamedTuple):
    """Training cells whose values are looked at all at once: at most MAX_SAMPLE, drawn."""

    cells: np.ndarray
    """n x G"""
    population: np.ndarray
    """(n,) of each"""

    @classmethod
    def of(cls, table: CellTable, config: Config) -> Sample:
        """Read once: cells may lie on a disk."""
        drawn = np.random.default_rng((config.seed, 4)).permutation(len(table.names))[:MAX_SAMPLE]
        rows = np.sort(drawn)
        return cls(table.dense(rows), table.population[rows])


@dataclass(frozen=True)
class Fitted:
    """What training leaves behind, and all that a prediction needs."""

    genes: tuple[str, ...]
    encoder: ConditionEncoder
    populations: Populations
    network: Network
    non_negative: np.ndarray
    """(G,) which genes had no negative value."""
    quantiles: np.ndarray
    """Q x G: the values of genes where they are not zero, see `response.shape.nonzero_quantiles`."""
    highest: float
    """The largest value of all."""
    normalisation: Normalisation
    covariances: Covariances | None
    """Of the populations; None without control cells, where nothing asks for them, and of a run made without."""
    time_span: tuple[float, float] | None
    """Earliest and latest time of the first training, by which the network is told of times; None without time."""

    @cached_property
    def anchor(self) -> Anchor:
        """Answers with the mean of any population; kept, as what it learns from does not change."""
        return Anchor().fit(self.populations)

    @cached_property
    def uncertainty(self) -> Uncertainty:
        """Of these answers."""
        return Uncertainty(self.anchor)

    def hash(self) -> str:
        """Of all arrays: what a run that starts from this one remembers."""
        whole = hashlib.sha256()
        for name, tensor in sorted(self.to_tensors().items()):
            whole.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return whole.hexdigest()

    def condition(self, key: Population, features: np.ndarray, start: np.ndarray, anchor: np.ndarray) -> np.ndarray:
        """Condition features (C,): those of the parts, of the time, and where the source and the anchor mean lie."""
        span = self.time_span
        where = [self._place(mean) for mean in (start, anchor)]
        times = [] if span is None or key.time is None else [time_features(key.time, span)]
        return np.concatenate([features, *times, *where]).astype(np.float32)

    def _place(self, mean: np.ndarray) -> np.ndarray:
        """Where a mean (G,) lies on the cells' axes, in standard deviations (K,)."""
        center, scale, axes, spread = self._axes
        return np.asarray(((mean - center) / scale) @ axes / spread)

    @cached_property
    def _axes(self) -> tuple[np.ndarray, ...]:
        network, gaussian = self.network, self.network.denoiser.gaussian
        tensors = (network.center, network.scale, gaussian.axes, gaussian.axis_variance.sqrt())
        return tuple(t.cpu().numpy() for t in tensors)

    def own_conditions(self, populations: Populations, sources: np.ndarray | None = None) -> np.ndarray:
        """Condition features of populations that have cells, P x C; means are those of training where it saw them.

        Sources are those that training has, where it saw the population, or those given: (P,) as `Populations.sources`.
        """
        rows = []
        for i, (key, features) in enumerate(zip(populations.keys, populations.features, strict=True)):
            seen = self.populations.find(key)
            if sources is not None:
                start = populations.keys[sources[i]] if sources[i] >= 0 else key
            else:
                known, own = (populations, i) if seen is None else (self.populations, seen)
                source = known.source_of(own)
                start = key if source is None else source.key
            means = (self._known_mean(populations, k) for k in (start, key))
            rows.append(self.condition(key, features, *means))
        return np.stack(rows)

    def _known_mean(self, populations: Populations, key: Population) -> np.ndarray:
        """The mean of training, where it saw the population; else that of `populations`, which has it."""
        known = populations if self.populations.find(key) is None else self.populations
        own = known.find(key)
        assert own is not None  # one of both has it
        return known.mean[own]

    @torch.no_grad()
    def encode(self, source: np.ndarray, condition: np.ndarray) -> torch.Tensor:
        """z_sem (B x Z) of source cells (B x G) and condition features (B x C), on the network's device."""
        device = self.network.center.device
        arrays = (np.ascontiguousarray(a, dtype=np.float32) for a in (source, condition))
        return self.network.encode(*(torch.from_numpy(a).to(device) for a in arrays))

    def require(self, found: Survey, where: str) -> None:
        """Raises InputError when cells of the same genes are plainly in another unit, or negative unlike training's."""
        self.normalisation.require(found, where)
        if self.non_negative.all() and not found.non_negative.all():
            raise InputError(f"X of {where} has negative values, that of training had none: normalise both alike")

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """All arrays of a fitted model by name, as model.safetensors holds them."""
        arrays = {
            "populations.mean": self.populations.mean,
            "populations.zero_fraction": self.populations.zero_fraction,
            "populations.features": self.populations.features,
            "populations.n_cells": self.populations.n_cells,
            "populations.variance": self.populations.variance,
            "vocabulary.vectors": self.encoder.vectors,
            "non_negative": self.non_negative,
            "quantiles": self.quantiles,
        }
        if self.populations.course is not None:
            arrays |= {f"course.{name}": values for name, values in self.populations.course._asdict().items()}
        if self.populations.parts is not None:
            parts = self.populations.parts
            arrays |= {f"parts.{field.name}": getattr(parts, field.name) for field in fields(parts)}
        if self.covariances is not None:
            arrays |= {f"covariances.{name}": values for name, values in self.covariances._asdict().items()}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        return tensors | {f"network.{name}": t for name, t in self.network.state_dict().items()}

    def to_json(self) -> dict[str, Any]:
        """What config.json says of a fitted model."""
        return {
            "genes": list(self.genes),
            "vocabulary": {"kind": self.encoder.kind, "names": list(self.encoder.names)},
            "populations": [list(k) for k in self.populations.keys],
            "highest": self.highest,
            "time_span": self.time_span,
            "normalisation": asdict(self.normalisation),
        }

    def encode_table(self, table: CellTable, schema: Schema) -> np.ndarray:
        """z_sem of each cell under its own condition, N x Z."""
        features = self.encoder.describe_each(table.parts)
        condition = self.own_conditions(summarise(table, features, schema))
        chunks = in_chunks(np.arange(len(table.names)))
        latents = (self.encode(table.dense(chunk), condition[table.population[chunk]]) for chunk in chunks)
        return np.concatenate([z_sem.cpu().numpy() for z_sem in latents])


def in_chunks(rows: np.ndarray) -> list[np.ndarray]:
    """Rows in parts of a size that memory bears."""
    return np.array_split(rows, max(1, len(rows) // Sampling().cells_per_batch))


def begin_anchored(
    table: CellTable,
    encoder: ConditionEncoder,
    normalisation: Normalisation,
    schema: Schema,
    config: Config,
    device: torch.device,
) -> tuple[Fitted, Pairs, Recipe[Batch]]:
    """An untrained model, the pairs to train it on and how. Raises InputError when no gene varies."""
    sample = Sample.of(table, config)
    populations = _of_training(table, encoder, schema, sample)
    standardisation = fit_standardisation(sample, populations, config)
    network = Network.initialise(config, standardisation, n_condition(populations, standardisation)).to(device)
    found = table.survey
    highest = float(found.highest.max())
    quantiles = nonzero_quantiles(sample.cells)
    fitted = Fitted(
        table.genes,
        encoder,
        populations,
        network,
        found.non_negative,
        quantiles,
        highest,
        normalisation,
        _covariances_of(table, populations, standardisation),
        populations.time_span,
    )
    return fitted, _pairs(fitted, table, config), RECIPE


def begin_from(
    table: CellTable,
    encoder: ConditionEncoder,
    normalisation: Normalisation,
    schema: Schema,
    config: Config,
    device: torch.device,
    earlier: Fitted,
) -> tuple[Fitted, Pairs, Recipe[Batch]]:
    """A trained model, to be trained on more cells: it keeps what it knows of populations, and learns those of these.

    Raises InputError when the network would be of another size, or conditions are described otherwise.
    """
    encoder, place = earlier.encoder.with_names_of(encoder)
    before = earlier.populations.features
    features = np.zeros((len(before), encoder.n_features), dtype=before.dtype)
    features[:, np.concatenate([[0], 1 + place])] = before
    known = replace(earlier.populations, features=features)
    sample = Sample.of(table, config)
    own = _of_training(table, encoder, schema, sample)
    populations, standardisation = known.joined(own), Standardisation.of_buffers(earlier.network.state_dict())
    network = Network.initialise(config, standardisation, n_condition(populations, standardisation))
    weights = dict(earlier.network.state_dict())
    # the encoder is shown genes, the strength, features, times and places: new names' features come in between
    first, n_genes = "encoder.layers.0.weight", len(table.genes)
    old = weights[first].cpu()
    n_rest = old.shape[1] - n_genes - before.shape[1]
    kept = np.concatenate(
        [np.arange(n_genes + 1), n_genes + 1 + place, n_genes + encoder.n_features + np.arange(n_rest)]
    )
    try:
        weights[first] = torch.zeros_like(network.state_dict()[first]).index_copy(1, torch.from_numpy(kept), old)
        network.load_state_dict(weights)
    except (IndexError, RuntimeError) as error:
        raise InputError("the run's network is of another size: give its --width, --n-blocks and --n-latent") from error
    found = table.survey
    fitted = Fitted(
        table.genes,
        encoder,
        populations,
        network.to(device),
        earlier.non_negative & found.non_negative,
        _quantiles_of(sample, earlier),
        max(earlier.highest, float(found.highest.max())),
        earlier.normalisation,
        _joined_covariances(table, own, earlier, populations),
        earlier.time_span,
    )
    return fitted, _pairs(fitted, table, config), RECIPE


def _quantiles_of(sample: Sample, earlier: Fitted) -> np.ndarray:
    """Those of the earlier training, and of genes that were silent there those of the new cells."""
    new = nonzero_quantiles(sample.cells)
    return np.where(earlier.quantiles[-1] > 0, earlier.quantiles, new)


def _covariances_of(table: CellTable, populations: Populations, standardisation: Standardisation) -> Covariances | None:
    """Of the populations; another pass over the cells, which would be in vain without a control."""
    if not populations.has_control:
        return None
    return Covariances.of(table.blocks(), table.population, populations, _common_axes(standardisation))


def _joined_covariances(table: CellTable, own: Populations, earlier: Fitted, joined: Populations) -> Covariances | None:
    """Of both trainings; nothing is known of the first where its run was made without."""
    if not own.has_control:
        return None
    known = earlier.covariances
    if known is None:
        axes, n = _common_axes(Standardisation.of_buffers(earlier.network.state_dict())), len(earlier.populations.keys)
        known = Covariances(axes, np.zeros((n, axes.shape[1], axes.shape[1])), np.zeros(n, dtype=int))
    new = Covariances.of(table.blocks(), table.population, own, known.axes)
    return known.joined(new, [(earlier.populations.find(key), own.find(key)) for key in joined.keys])


def _common_axes(standardisation: Standardisation) -> np.ndarray:
    """On which covariances are known, G x K."""
    return standardisation.axes[:, :N_AXES].cpu().double().numpy()


def begin_again(fitted: Fitted, pairs: Pairs, config: Config, state: Saved) -> tuple[Fitted, Pairs]:
    """The same with the standardisation of a saved state: another machine may compute other axes from equal cells."""
    standardisation = load_standardisation(state)
    network = Network.initialise(config, standardisation, n_condition(fitted.populations, standardisation))
    again = replace(fitted, network=network.to(fitted.network.center.device))
    return again, _pairs(again, pairs.table, config)


def _pairs(fitted: Fitted, table: CellTable, config: Config) -> Pairs:
    """Of training cells; what a population's mean is, the model knows, also of cells that it was trained on before."""
    rows = np.array([fitted.populations.find(Population(*key)) for key in table.keys])
    own = fitted.populations.only(rows)
    return Pairs(table, own.sources, own.mean, fitted.own_conditions(own, own.sources), config.pairing)


def summarise(table: CellTable, features: np.ndarray, schema: Schema) -> Populations:
    """The populations of a table, with the condition features (P x F) that are given."""
    keys = tuple(Population(*k) for k in table.keys)
    return Populations.summarise(table.blocks(), table.population, keys, features, schema.control is not None)


def _of_training(table: CellTable, encoder: ConditionEncoder, schema: Schema, sample: Sample) -> Populations:
    """The same with what single cells tell: parts and, where there are times, how each goes on."""
    populations = summarise(table, encoder.describe_each(table.parts), schema)
    has_times = populations.time_span is not None
    course = courses(sample.cells, sample.population, populations.keys) if has_times else None
    return replace(populations, course=course, parts=split(sample.cells, sample.population, populations))


def n_condition(populations: Populations, standardisation: Standardisation) -> int:
    """C, the number of condition features: of the parts, of the time, and two places on the axes."""
    has_time = populations.time_span is not None
    return populations.features.shape[1] + N_TIME_FEATURES * has_time + 2 * standardisation.axes.shape[1]


def fit_standardisation(sample: Sample, populations: Populations, config: Config) -> Standardisation:
    """Scales and principal axes of the training cells.

    Raises InputError when no gene varies.
    """
    from sklearn.decomposition import PCA

    cells = sample.cells
    if not np.ptp(cells, axis=0).any():
        raise InputError("no gene varies over the training cells: X holds one and the same profile")
    residual = cells - populations.mean[sample.population].astype(np.float32)
    if not residual.any():
        raise InputError(
            "no two cells of a population differ, and how they do is what is learned: give several of each"
        )
    scale, spread = (np.maximum(s, SMALLEST_SCALE * max(s.max(), 1e-6)) for s in (residual.std(0), cells.std(0)))
    residual /= scale
    n_axes = min(config.n_axes, *(n - 1 for n in residual.shape))
    pca = PCA(n_axes, random_state=config.seed).fit(residual)
    on_axes = pca.explained_variance_
    rest = (residual.var(axis=0, ddof=1).sum() - on_axes.sum()) / (residual.shape[1] - n_axes)  # PCA's are by n - 1
    arrays = (cells.mean(axis=0), spread, scale, pca.components_.T, on_axes, np.maximum(rest, 1e-4))
    return Standardisation(*(torch.from_numpy(np.array(a, dtype=np.float32)) for a in arrays))


def digest(settings: dict[str, Any]) -> str:
    """SHA-256 of what config.json says; the weights carry it, so that those of another run are noticed."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def load_vocabulary(saved: dict[str, Any], tensors: dict[str, torch.Tensor]) -> ConditionEncoder:
    """Raises KeyError when a part is missing."""
    vocabulary = saved["vocabulary"]
    return ConditionEncoder(vocabulary["kind"], tuple(vocabulary["names"]), tensors["vocabulary.vectors"].numpy())


def _parts(arrays: dict[str, np.ndarray], n_populations: int) -> Parts | None:
    """Raises ValueError when they are not of so many populations."""
    if "parts.population" not in arrays:
        return None
    parts = Parts(*(arrays[f"parts.{field.name}"] for field in fields(Parts)))
    n_genes = arrays["populations.mean"].shape[1]
    is_whole = parts.mean.shape == (len(parts.population), n_genes) and len(parts.share) == len(parts.population)
    if not is_whole or not 0 <= parts.population.min() <= parts.population.max() < n_populations:
        raise ValueError("the parts of populations are not of these")
    return parts


def rebuild(saved: dict[str, Any], tensors: dict[str, torch.Tensor], config: Config, device: torch.device) -> Fitted:
    """The inverse of `to_tensors` and `to_json`. Raises InputError when they do not belong together."""
    try:
        arrays = {name: t.numpy() for name, t in tensors.items() if not name.startswith("network.")}
        weights = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
        standardisation = Standardisation.of_buffers(weights)
        populations = Populations(
            tuple(Population(context, condition, time) for context, condition, time in saved["populations"]),
            arrays["populations.features"],
            arrays["populations.mean"],
            arrays["populations.zero_fraction"],
            arrays["populations.n_cells"],
            saved["schema"]["control"] is not None,
            arrays["populations.variance"],
            course=None if saved["time_span"] is None else Course(arrays["course.change"], arrays["course.noise"]),
            parts=_parts(arrays, len(saved["populations"])),
        )
        covariances = None
        if "covariances.axes" in arrays:
            covariances = Covariances(*(arrays[f"covariances.{name}"] for name in Covariances._fields))
        network = Network.initialise(config, standardisation, n_condition(populations, standardisation))
        network.load_state_dict(weights)
        encoder = load_vocabulary(saved, tensors)
        genes = tuple(saved["genes"])
        expected = {
            "populations.features": (len(populations.keys), encoder.n_features),
            "populations.mean": (len(populations.keys), len(genes)),
            "populations.zero_fraction": (len(populations.keys), len(genes)),
            "populations.n_cells": (len(populations.keys),),
            "populations.variance": (len(populations.keys), len(genes)),
            "non_negative": (len(genes),),
            **({} if covariances is None else covariances.shapes(len(populations.keys), len(genes))),
            **({} if populations.course is None else {"course.change": (len(populations.keys), len(genes))}),
            "quantiles": (N_QUANTILES, len(genes)),
            "network.center": (len(genes),),
        }
        for name, shape in expected.items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"{name} is of shape {tuple(tensors[name].shape)}, not {shape}")
        require_finite_tensors(tensors)
        return Fitted(
            genes,
            encoder,
            populations,
            network.to(device),
            arrays["non_negative"].astype(bool),
            arrays["quantiles"],
            float(saved["highest"]),
            Normalisation(**saved["normalisation"]),
            covariances,
            None if saved["time_span"] is None else (float(saved["time_span"][0]), float(saved["time_span"][1])),
        )
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"the run's model.safetensors and config.json do not belong together: {error}") from error
