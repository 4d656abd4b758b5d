"""Upstream's network computes what upstream computes, and its checkpoints say what they hold."""

from __future__ import annotations

import pytest
import torch

from squidiff.config import InputError
from squidiff.diffusion.loss import add_noise
from squidiff.diffusion.samplers import invert_ddim, last, sample_ddim
from squidiff.diffusion.schedule import StepSchedule
from squidiff.model.upstream import UpstreamDenoiser, UpstreamNetwork, UpstreamSizes, embed_step
from upstream_oracles import VARIANTS, assert_near, oracle, state

SCHEDULE = StepSchedule.named("linear", 1000)
SIZES = {"autoencoder": UpstreamSizes(30, 0, 60, 32, 32, 3, 32), "drug": UpstreamSizes(30, 1024, 60, 32, 32, 3, 32)}
OTHER = UpstreamSizes(n_genes=7, n_fingerprint=5, n_latent=3, width=11, n_embedding=13, n_blocks=2, n_encoder=9)


def latents(variant: str, network: UpstreamNetwork) -> torch.Tensor:
    given = oracle(f"{variant}_io")
    drug = {"drug_dose": given["drug_dose"], "control_feature": given["control"]} if variant == "drug" else {}
    with torch.no_grad():
        return network.encoder(given["x_start"], **drug)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_loads_without_missing_and_unexpected_keys(variant: str) -> None:
    given = state(variant)
    network = UpstreamNetwork.from_state(given)
    assert network.sizes == SIZES[variant]
    assert list(network.state_dict()) == list(given)  # the order too: optimisers count parameters by it
    assert all(torch.equal(tensor, given[key]) for key, tensor in network.state_dict().items())


def test_any_sizes_are_read_from_the_tensors() -> None:
    network = UpstreamNetwork.initialise(OTHER, seed=0)
    assert UpstreamSizes.of(network.state_dict()) == OTHER
    cells, drugs = torch.randn(4, 7, generator=seeded(0)), torch.randn(4, 5, generator=seeded(1))
    z_sem = UpstreamNetwork.from_state(network.state_dict()).encoder(cells, drug_dose=drugs)
    assert z_sem.shape == (4, 3)


def test_the_embedding_of_steps_is_upstreams() -> None:
    given = oracle("schedule")
    torch.testing.assert_close(embed_step(given["t"], 32), given["embedding_dim32"], rtol=0, atol=1e-6)
    odd = embed_step(given["t"], 33)
    assert torch.equal(odd[:, :32], embed_step(given["t"], 32))
    assert not odd[:, 32].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_latents_noise_and_loss_are_upstreams(variant: str) -> None:
    given, network = oracle(f"{variant}_io"), UpstreamNetwork.from_state(state(variant))
    z_sem = latents(variant, network)
    assert_near(z_sem, given["z_sem"])
    level = SCHEDULE.level(given["t"])
    x_t = add_noise(given["x_start"], given["noise"], type(level)(*(part.float().unsqueeze(1) for part in level)))
    assert_near(x_t, given["x_t"])
    with torch.no_grad():
        eps = network(x_t, given["t"], z_sem)
    assert_near(eps, given["eps"])
    assert_near((eps - given["noise"]).square().mean(dim=1), given["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_thousand_ddim_steps_and_the_inversion_are_upstreams(variant: str) -> None:
    given, network = oracle(f"{variant}_io"), UpstreamNetwork.from_state(state(variant))
    steps = SCHEDULE.sampling_steps(1000)
    levels = SCHEDULE.sampling_levels(steps)
    denoise = UpstreamDenoiser(network, levels[:-1], steps).bind(given["z_sem"])
    assert_near(last(sample_ddim(denoise, given["x_T"], levels)), given["ddim_1000"])
    assert_near(last(invert_ddim(denoise, given["x_start"], levels[:-1])), given["ddim_reverse_999"])


def test_what_leaves_the_loop_changes_nothing() -> None:
    """The denoiser of sampling is the network, with x0 clamped and eps derived again, for each cell alone as beside
    others."""
    network = UpstreamNetwork.initialise(OTHER, seed=1).eval()
    steps = [800, 300, 2]
    levels = SCHEDULE.sampling_levels(steps)[:-1]
    x_t, z_sem = torch.randn(6, 7, generator=seeded(2)), torch.randn(6, 3, generator=seeded(3))
    denoiser = UpstreamDenoiser(network, levels, steps)
    for step, level in zip(steps, levels, strict=True):
        alpha, sigma = level.alpha.float(), level.sigma.float()
        with torch.no_grad():
            eps = network(x_t, torch.full((6,), step), z_sem)
        x0 = ((x_t - sigma * eps) / alpha).clamp(min=0)
        prediction = denoiser.bind(z_sem)(x_t, level)
        assert 0 < (x0 == 0).float().mean() < 1
        assert_near(prediction.x0, x0)
        assert_near(prediction.eps, (x_t - alpha * x0) / sigma)
        assert_near(denoiser.bind(z_sem[2:3])(x_t[2:3], level).x0, x0[2:3])


def test_weights_come_from_the_seed_and_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (UpstreamNetwork.initialise(OTHER, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["output_layer.weight"], other["output_layer.weight"])


BLOCKS = [key for key in state("autoencoder") if key.startswith("mlp_blocks.")]


def broken(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    return {key: t for key, t in {**state("autoencoder"), **changed}.items() if t is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_layer__weight": None}, "'input_layer.weight' is missing"),
        ({"input_layer__weight": torch.zeros(3)}, "of another shape"),
        ({"output_layer__weight": torch.tensor(1.0)}, "of another shape"),
        ({f"mlp_blocks__{key.removeprefix('mlp_blocks.')}": None for key in BLOCKS}, "it has no blocks"),
        ({"encoder__fc1__weight": None}, "no semantic encoder"),
        ({"output_layer__weight": torch.zeros(60, 32)}, "--learn_sigma True are not supported"),
        ({"output_layer__weight": torch.zeros(31, 32)}, "reads 30 genes, writes 31"),
        ({"encoder__bn2__running_var": None}, "Missing key"),
        ({"another": torch.zeros(1)}, "Unexpected key"),
        ({"mlp_blocks__1__fc2__bias": torch.zeros(5)}, "size mismatch for mlp_blocks.1.fc2.bias"),
    ],
)
def test_another_networks_tensors_are_refused(changes: dict[str, torch.Tensor | None], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        UpstreamNetwork.from_state(broken(**changes))
    assert "\n" not in str(error.value)


def test_an_encoder_says_what_it_cannot_read() -> None:
    encoder = UpstreamNetwork.from_state(state("drug")).encoder
    with pytest.raises(InputError, match="shown 30 numbers a cell but reads 1054"):
        encoder(torch.zeros(2, 30))
    with pytest.raises(InputError, match="labels are not supported"):
        encoder(torch.zeros(2, 30), label=torch.zeros(2, 1))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
