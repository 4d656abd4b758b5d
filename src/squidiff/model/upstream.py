"""Upstream's network, key for key (siyuh/Squidiff, newest commit), so that its checkpoints load as they are.

Owns the layers, what is read from a checkpoint's tensors, and the denoiser that sampling calls. The modules' names are
the checkpoint's keys, and calls of the network and of its encoder take upstream's arguments; everything else has this
project's names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional

from squidiff.config import InputError, NoiseLevel, Prediction
from squidiff.model.linear import Linear, linear

MAX_PERIOD = 10_000.0
NO_CHECKPOINT = "it is no checkpoint of upstream's network"


def embed_step(step: torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoidal embedding (B x width) of steps (B,): cos, then sin of step * MAX_PERIOD^(-i / half), i < half."""
    half = width // 2
    places = torch.arange(half, dtype=torch.float32, device=step.device)
    frequency = torch.exp(-math.log(MAX_PERIOD) * places / half)
    angle = step.float().unsqueeze(1) * frequency
    return functional.pad(torch.cat([angle.cos(), angle.sin()], dim=1), (0, width % 2))


class UpstreamSizes(NamedTuple):
    """What a checkpoint's tensors say of its network."""

    n_genes: int
    n_fingerprint: int
    """Length of the drug encoding that the encoder is shown beside the control cell; 0 in the autoencoder variant."""
    n_latent: int
    width: int
    n_embedding: int
    """Width of the time embedding's second layer; the sinusoidal embedding is as wide as the blocks."""
    n_blocks: int
    n_encoder: int
    """Width of the encoder's hidden layers."""

    @property
    def has_drugs(self) -> bool:
        return self.n_fingerprint > 0

    @classmethod
    def of(cls, state: Mapping[str, torch.Tensor]) -> UpstreamSizes:
        """Raises InputError when the tensors are not those of one of upstream's networks with a semantic encoder."""
        try:
            width, n_genes = state["input_layer.weight"].shape
            n_output = state["output_layer.weight"].shape[0]
            if "encoder.fc1.weight" not in state:
                raise InputError(
                    "it has no semantic encoder (trained with --use_encoder False): nothing to condition on"
                )
            n_encoder, n_shown = state["encoder.fc1.weight"].shape
            n_latent = state["encoder.fc3.weight"].shape[0]
            n_embedding, n_sinusoidal = state["time_embed.0.weight"].shape
        except (IndexError, KeyError, ValueError) as error:
            raise InputError(f"{NO_CHECKPOINT}: {error} is missing or of another shape") from None
        if n_output == 2 * n_genes:
            raise InputError(
                "its output is twice as wide as its input: models with --learn_sigma True are not supported"
            )
        if n_output != n_genes or n_shown < n_genes or n_sinusoidal != width:
            raise InputError(
                f"{NO_CHECKPOINT}: it reads {n_genes} genes, writes {n_output}, its encoder "
                f"reads {n_shown} numbers and its embedding of steps {n_sinusoidal}"
            )
        blocks = {key.split(".")[1] for key in state if key.startswith("mlp_blocks.")}
        if not blocks:
            raise InputError(f"{NO_CHECKPOINT}: it has no blocks")
        return cls(n_genes, n_shown - n_genes, n_latent, width, n_embedding, len(blocks), n_encoder)


class UpstreamEncoder(nn.Module):
    """z_sem (B x Z) of what is shown: the cell itself, or a control cell and a drug encoding."""

    def __init__(self, n_shown: int, width: int, n_latent: int) -> None:
        super().__init__()
        self.fc1 = Linear(n_shown, width)
        self.bn1 = nn.BatchNorm1d(width)
        self.bn2 = nn.BatchNorm1d(width)
        self.fc2 = Linear(width, width)
        self.fc3 = Linear(width, n_latent)
        self.label_embed = Linear(1, width).requires_grad_(False)  # never used, but a key of every checkpoint

    def forward(
        self,
        x_start: torch.Tensor,
        label: None = None,
        drug_dose: torch.Tensor | None = None,
        control_feature: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Upstream's call: `encoder(cells)`, or `encoder(cells, drug_dose=..., control_feature=...)`.

        With a drug encoding the control cells are what is shown and `x_start` is not, as upstream has it; without
        control_feature `x_start` stands for them.
        """
        if label is not None:
            raise InputError("labels are not supported: upstream's class_cond crashes wherever it is used")
        shown = x_start
        if drug_dose is not None:
            shown = torch.cat([x_start if control_feature is None else control_feature, drug_dose], dim=1)
        if shown.shape[1] != self.fc1.in_features:
            raise InputError(f"the encoder is shown {shown.shape[1]} numbers a cell but reads {self.fc1.in_features}")
        h = functional.relu(self.bn1(self.fc1(shown.to(self.fc1.weight.dtype))))
        h = functional.relu(self.bn2(self.fc2(h)))
        z_sem: torch.Tensor = self.fc3(h)
        return z_sem


class UpstreamBlock(nn.Module):
    """h = SiLU(LN1(fc1 h)); h = h + time_dense(emb) + zsem_dense(z_sem); h = SiLU(LN2(fc2 h)). No skip."""

    def __init__(self, width: int, n_embedding: int, n_latent: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, width)
        self.fc2 = Linear(width, width)
        self.layer_norm1 = nn.LayerNorm(width)
        self.layer_norm2 = nn.LayerNorm(width)
        self.time_dense = Linear(n_embedding, width)
        self.zsem_dense = Linear(n_latent, width)

    def forward(self, h: torch.Tensor, embedded: torch.Tensor, z_sem: torch.Tensor) -> torch.Tensor:
        return self.finish(self.fc1(h), self.time_dense(embedded), self.zsem_dense(z_sem))

    def finish(self, lifted: torch.Tensor, of_step: torch.Tensor, of_latent: torch.Tensor) -> torch.Tensor:
        """The block after fc1, with the projections of the step and of z_sem given."""
        h = functional.silu(self.layer_norm1(lifted)) + of_step + of_latent
        return functional.silu(self.layer_norm2(self.fc2(h)))


class UpstreamNetwork(nn.Module):
    """Upstream's diffusion autoencoder: eps of noised cells (B x G), their step and z_sem."""

    def __init__(self, sizes: UpstreamSizes) -> None:
        super().__init__()
        self.sizes = sizes
        width, n_embedding = sizes.width, sizes.n_embedding
        self.encoder = UpstreamEncoder(sizes.n_genes + sizes.n_fingerprint, sizes.n_encoder, sizes.n_latent)
        self.time_embed = nn.Sequential(Linear(width, n_embedding), nn.SiLU(), Linear(n_embedding, n_embedding))
        self.mlp_blocks = nn.ModuleList(
            UpstreamBlock(width, n_embedding, sizes.n_latent) for _ in range(sizes.n_blocks)
        )
        self.input_layer = Linear(sizes.n_genes, width)
        self.output_layer = Linear(width, sizes.n_genes)

    @classmethod
    def initialise(cls, sizes: UpstreamSizes, seed: int) -> UpstreamNetwork:
        """Weights as torch draws them for linear layers (upstream's start), from a seed of their own."""
        with torch.random.fork_rng(devices=[]):
            network = cls(sizes)
        generator = torch.Generator().manual_seed(seed)
        for module in network.modules():
            if isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        return network

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> UpstreamNetwork:
        """The network of a checkpoint, in evaluation mode. Raises InputError when a key is missing or unexpected."""
        sizes = UpstreamSizes.of(state)
        with torch.random.fork_rng(devices=[]):
            network = cls(sizes)
        try:
            network.load_state_dict(dict(state))
        except RuntimeError as error:
            reason = " ".join(str(error).split("\n", 1)[-1].split())
            raise InputError(f"{NO_CHECKPOINT}: {reason}") from None
        return network.eval()

    @property
    def blocks(self) -> list[UpstreamBlock]:
        return [cast(UpstreamBlock, block) for block in self.mlp_blocks]

    @property
    def device(self) -> torch.device:
        return self.input_layer.weight.device

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        z_mod: torch.Tensor | None = None,
        *,
        x_start: torch.Tensor | None = None,
        drug_dose: torch.Tensor | None = None,
        control_feature: torch.Tensor | None = None,
        group: object = None,
    ) -> torch.Tensor:
        """eps (B x G) of noised cells (B x G) at their steps (B,), under their latents (B x Z).

        Without `z_mod` the latents are what the encoder makes of the rest, but for `group`, which upstream hands over
        and does not use. Raises InputError when neither is given.
        """
        z_sem = z_mod
        if z_sem is None:
            if x_start is None:
                raise InputError("neither z_mod nor x_start is given: give the latents of the cells to generate")
            z_sem = self.encoder(x_start, None, drug_dose, control_feature)
        embedded = self.time_embed(embed_step(timesteps, self.sizes.width))
        h = self.input_layer(x)
        for block in self.blocks:
            h = block(h, embedded, z_sem)
        eps: torch.Tensor = self.output_layer(h)
        return eps


class UpstreamDenoiser:
    """The network ready to sample over fixed levels: what is the same for all cells is computed here, once.

    That is the time embedding of every level and its projections, and the product of the first two layers, between
    which upstream has no activation.
    """

    @torch.no_grad()
    def __init__(self, network: UpstreamNetwork, levels: Sequence[NoiseLevel], steps: Sequence[float]) -> None:
        self.network = network
        weight = network.input_layer.weight
        step = torch.tensor(steps, dtype=torch.float32, device=weight.device)
        embedded = network.time_embed(embed_step(step, network.sizes.width))
        self._of_step = [block.time_dense(embedded) for block in network.blocks]
        self._row = {level.alpha.item(): i for i, level in enumerate(levels)}
        first = network.blocks[0].fc1
        self._weight = first.weight @ weight
        self._bias = torch.addmv(first.bias, first.weight, network.input_layer.bias)

    @torch.no_grad()
    def bind(self, z_sem: torch.Tensor) -> Callable[[torch.Tensor, NoiseLevel], Prediction]:
        """The denoiser of cells with these latents (B x Z), whose projections are computed once for all levels.

        As upstream has it (FIELD.md, section 2): x0 is clamped to x0 >= 0 and eps derived again from the clamped x0,
        so that x_t = alpha x0 + sigma eps holds.
        """
        of_latent = [block.zsem_dense(z_sem) for block in self.network.blocks]

        def denoise(x_t: torch.Tensor, level: NoiseLevel) -> Prediction:
            alpha, sigma = level.alpha.item(), level.sigma.item()
            eps = self._eps(x_t, self._row[alpha], of_latent)
            x0 = eps.mul_(-sigma).add_(x_t).div_(alpha).clamp_(min=0.0)
            return Prediction(x0, torch.sub(x_t, x0, alpha=alpha).div_(sigma))

        return denoise

    @torch.no_grad()
    def _eps(self, x_t: torch.Tensor, row: int, of_latent: Sequence[torch.Tensor]) -> torch.Tensor:
        """`UpstreamNetwork.forward` with the given projections; in place, since a wide layer costs what it moves."""
        h = linear(x_t, self._weight, self._bias)
        for i, block in enumerate(self.network.blocks):
            if i > 0:
                h = block.fc1(h)
            h = functional.silu(block.layer_norm1(h), inplace=True)
            h.add_(of_latent[i]).add_(self._of_step[i][row])
            h = functional.silu(block.layer_norm2(block.fc2(h)), inplace=True)
        eps: torch.Tensor = self.network.output_layer(h)
        return eps
