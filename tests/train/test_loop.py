"""The loop: its closed forms, that it repeats bit by bit, that it learns, and that it can be left at any step."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from easy_problem import batch, config, network, run, same, stream, weights, whole

from squidiff.config import Config, InputError
from squidiff.train.checkpoint import load_state, read_state, save_state
from squidiff.train.loop import (
    TrainState,
    averaged_weights,
    in_parts,
    learning_rate,
    training_steps,
    validation_loss,
)
from squidiff.train.processes import find_device


def gradient_norm(state: TrainState) -> float:
    """Of all parameters together, in float64."""
    gradients = [p.grad for p in state.network.parameters() if p.grad is not None]
    return math.sqrt(sum(g.double().square().sum().item() for g in gradients))


# --- the learning rate


def test_learning_rate_by_hand() -> None:
    settings = config(n_train_steps=100, n_warmup_steps=10, learning_rate=0.01)
    expected = {
        0: 0.001,  # a tenth, and the cosine is still 1
        4: 0.005 * 0.5 * (1 + math.cos(0.04 * math.pi)),
        9: 0.01 * 0.5 * (1 + math.cos(0.09 * math.pi)),  # the end of the warm-up
        50: 0.005,
        75: 0.01 * 0.5 * (1 - math.sqrt(0.5)),
        100: 0.0,  # after the last step
    }
    for step, rate in expected.items():
        assert learning_rate(step, settings) == pytest.approx(rate, rel=1e-12, abs=1e-17)


def test_learning_rate_without_warm_up_starts_at_its_highest_and_only_falls() -> None:
    settings = config(n_train_steps=30, n_warmup_steps=0, learning_rate=0.01)
    rates = [learning_rate(step, settings) for step in range(31)]
    assert rates[0] == 0.01
    assert rates == sorted(set(rates), reverse=True)


def test_the_learning_rate_is_that_of_the_optimiser() -> None:
    """AdamW's first update is rate * sign(gradient) where there is no weight decay (Kingma and Ba 2015)."""
    settings = config(weight_decay=0.0, n_warmup_steps=7, learning_rate=0.01)
    before = weights(TrainState.start(network(settings), settings))
    state, steps = run(settings, 1)
    rate = 0.01 / 7
    assert steps[0].learning_rate == pytest.approx(rate, rel=1e-12)
    change = weights(state)["denoiser.project.weight"] - before["denoiser.project.weight"]
    gradient = state.network.denoiser.project.weight.grad
    assert gradient.abs().median().item() > 1e-4  # far above AdamW's eps, 1e-8
    clear = gradient.abs() > 1e-4
    torch.testing.assert_close(change[clear], -rate * gradient[clear].sign(), rtol=1e-3, atol=0)


# --- the steps


def test_the_average_is_the_recursion_over_the_recorded_weights() -> None:
    settings = config(n_train_steps=30, ema_decay=0.6)
    state = TrainState.start(network(settings), settings)
    expected = {name: w.double() for name, w in weights(state).items()}
    decays = []
    for step in training_steps(state, stream(0), settings):
        decays.append(min(0.6, (1 + step.step) / (10 + step.step)))
        for name, w in weights(state).items():
            expected[name] = decays[-1] * expected[name] + (1 - decays[-1]) * w.double()
        for name in expected:
            torch.testing.assert_close(state.average[name].double(), expected[name], rtol=0, atol=1e-6)
    assert decays[0] == 2 / 11
    assert decays[-1] == 0.6  # both regimes were seen
    assert not same(state.average, weights(state))


def test_steps_are_counted_to_the_last_and_rates_are_those_of_the_schedule() -> None:
    settings = config(n_train_steps=12)
    state, steps = run(settings)
    assert [s.step for s in steps] == list(range(1, 13))
    assert [s.learning_rate for s in steps] == [learning_rate(i, settings) for i in range(12)]
    assert state.step == 12
    assert list(training_steps(state, stream(12), settings)) == []


@pytest.mark.parametrize("n_before", [1, 7, 19])
def test_a_loop_that_was_left_goes_on_as_if_it_had_not_been(n_before: int) -> None:
    """The state is whole at each yield, so a new loop over it and the rest of the batches ends in the same bits."""
    expected, steps = run(config())
    state, first = run(config(), n_before)
    assert state.step == n_before
    rest = list(training_steps(state, stream(n_before), config()))
    assert same(whole(state), whole(expected))
    assert [s.step for s in (*first, *rest)] == [s.step for s in steps]
    for one, other in zip((*first, *rest), steps, strict=True):
        assert torch.equal(one.losses.loss, other.losses.loss)


def test_the_same_seed_gives_the_same_bits_whatever_the_global_random_state() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one = whole(run(config(seed=3))[0])
        torch.manual_seed(2)
        before = torch.get_rng_state()
        other = whole(run(config(seed=3))[0])
        assert torch.equal(before, torch.get_rng_state())
    assert same(one, other)


def test_another_seed_gives_other_weights_from_the_same_batches() -> None:
    one, other = (weights(run(config(seed=seed))[0]) for seed in (0, 1))
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_the_seed_also_draws_the_noise() -> None:
    """Two networks with the same weights: the generators of two seeds give them other losses."""
    losses = []
    for seed in (0, 1):
        state = TrainState.start(network(config()), config(seed=seed))
        losses.append(next(training_steps(state, stream(0), config())).losses.loss)
    assert not torch.equal(*losses)


@pytest.mark.slow
def test_the_loss_falls_where_the_condition_says_all() -> None:
    """The target is a function of the condition but for noise of 0.1, so almost all of the error can be learned."""
    settings = config(n_train_steps=300, n_warmup_steps=20)
    state, steps = run(settings)
    first, last = (torch.cat([s.losses.loss for s in part]).mean().item() for part in (steps[:20], steps[-20:]))
    assert last < 0.3 * first
    fresh = TrainState.start(network(settings), settings)
    held_out = [batch(10**6), batch(10**6 + 1)]
    assert validation_loss(state, held_out, 0) < 0.3 * validation_loss(fresh, held_out, 0)


def test_the_gradient_is_clipped_to_its_norm_and_keeps_its_direction() -> None:
    free = run(config(max_grad_norm=1e6), 1)[0]
    clipped = run(config(max_grad_norm=0.01), 1)[0]
    assert gradient_norm(free) > 0.02
    assert gradient_norm(clipped) == pytest.approx(0.01, rel=1e-4)
    shrink = 0.01 / gradient_norm(free)
    for one, other in zip(free.network.parameters(), clipped.network.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, shrink * one.grad, rtol=1e-3, atol=1e-9)


def test_no_step_has_a_gradient_above_the_norm() -> None:
    settings = config(max_grad_norm=0.05)
    state = TrainState.start(network(settings), settings)
    norms = [gradient_norm(state) for _ in training_steps(state, stream(0), settings)]
    assert len(norms) == settings.n_train_steps
    assert max(norms) <= 0.05 * (1 + 1e-5)


# --- what surrounds the steps


def test_averaged_weights_are_in_place_inside_and_gone_after() -> None:
    state, _ = run(config())
    before = weights(state)
    with averaged_weights(state):
        assert same(weights(state), state.average)
    assert same(weights(state), before)


def test_averaged_weights_are_gone_after_an_error_too() -> None:
    state, _ = run(config())
    before = weights(state)
    with pytest.raises(ZeroDivisionError), averaged_weights(state):
        raise ZeroDivisionError
    assert same(weights(state), before)


def test_the_validation_loss_is_of_the_averaged_weights_and_repeats() -> None:
    state, _ = run(config())
    batches = [batch(10**6), batch(10**6 + 1, n=5)]
    before = whole(state)
    loss = validation_loss(state, batches, 4)
    assert loss == validation_loss(state, batches, 4) != validation_loss(state, batches, 5)
    assert same(whole(state), before)  # it took nothing from the training's generator either
    with averaged_weights(state):
        averaged = {name: w.clone() for name, w in weights(state).items()}
    fresh = TrainState.start(network(), config())
    fresh.average = averaged
    assert validation_loss(fresh, batches, 4) == loss


def test_a_cpu_is_found_and_nonsense_is_refused() -> None:
    assert find_device("cpu") == torch.device("cpu")
    torch.zeros(1, device=find_device("auto"))
    with pytest.raises(InputError, match=r"^device 'nonsense' is not to be had on this machine: use auto or cpu$"):
        find_device("nonsense")


def after_some_steps(settings: Config) -> TrainState:
    """Not before the fourth step has the loss a gradient in every layer."""
    return run(dataclasses.replace(settings, n_train_steps=20), 5)[0]


def gradients(state: TrainState) -> list[torch.Tensor]:
    return [p.grad.clone() for p in state.network.parameters() if p.grad is not None]


def test_a_batch_in_parts_has_the_losses_and_the_gradient_of_the_whole() -> None:
    found = []
    for size in (None, 10):
        state = after_some_steps(config(max_grad_norm=None))
        state.micro_batch_size = size
        step = next(training_steps(state, stream(5), config(max_grad_norm=None)))
        assert step.micro_batch_size == size
        found.append((step.losses, gradients(state)))
    (losses, whole_batch), (losses_of_parts, in_some) = found
    torch.testing.assert_close(losses_of_parts.loss, losses.loss, rtol=1e-5, atol=1e-7)
    assert torch.equal(losses_of_parts.position, losses.position)
    for one, other in zip(in_some, whole_batch, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def bears(state: TrainState, n_cells: int) -> None:
    """From now on the network runs out of memory on more cells than these."""

    def encode(module: object, given: tuple[torch.Tensor, ...]) -> None:
        if len(given[0]) > n_cells:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.14 GiB")

    state.network.encoder.register_forward_pre_hook(encode)


def test_what_does_not_fit_the_memory_is_taken_in_parts_from_then_on() -> None:
    expected, state = after_some_steps(config()), after_some_steps(config())
    bears(state, 10)
    step, wanted = (next(training_steps(s, stream(5), config())) for s in (state, expected))
    assert (step.micro_batch_size, state.micro_batch_size) == (8, 8)  # 32, 16, 8
    for one, other in zip(gradients(state), gradients(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert torch.equal(step.losses.position, wanted.losses.position)  # the noise was not drawn again
    assert next(training_steps(state, stream(6), config())).micro_batch_size == 8


def test_validation_is_taken_in_parts_where_memory_does_not_hold_a_batch() -> None:
    state, held_out = after_some_steps(config()), [batch(10**6), batch(10**6 + 1, n=20)]
    expected = validation_loss(state, held_out, 4)
    state.micro_batch_size = 10
    bears(state, 10)
    assert validation_loss(state, held_out, 4) == pytest.approx(expected, rel=1e-6)


def test_a_try_that_did_not_fit_leaves_no_trace_in_batchnorms_averages() -> None:
    def count(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        module.averages(given[0])

    found = []
    for holds, size in ((10**6, 8), (8, None)):
        state = after_some_steps(config())
        state.network.encoder.add_module("averages", torch.nn.BatchNorm1d(8, affine=False))
        state.network.encoder.register_forward_pre_hook(count)
        bears(state, holds)
        state.micro_batch_size = size
        next(training_steps(state, stream(5), config()))
        found.append({name: b.clone() for name, b in state.network.encoder.averages.named_buffers()})
    assert same(*found)


def test_a_smaller_part_than_was_saved_may_be_asked_for_and_a_larger_one_is_not_taken(tmp_path: Path) -> None:
    state = after_some_steps(config())
    state.micro_batch_size = 8
    save_state(tmp_path / "s.safetensors", state, {}, {})
    for asked, expected in ((None, 8), (16, 8), (4, 4)):
        fresh = TrainState.start(network(), config(micro_batch_size=asked))
        load_state(read_state(tmp_path / "s.safetensors"), fresh, 20)
        assert fresh.micro_batch_size == expected


def test_where_two_cells_do_not_fit_it_ends_in_a_sentence_and_other_errors_stay_what_they_are() -> None:
    state = after_some_steps(config())
    bears(state, 1)
    with pytest.raises(InputError, match=r"^the memory of cpu does not hold a step of 2 cells: lower --width, or take"):
        next(training_steps(state, stream(5), config()))
    state = after_some_steps(config())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        next(training_steps(state, lambda: batch(0)._replace(condition=torch.ones(32, 7)), config()))


@pytest.mark.parametrize(("n", "size", "expected"), [(8, 3, [3, 3, 2]), (3, 2, [3]), (5, 2, [3, 2]), (4, 9, [4])])
def test_parts_are_even_and_never_a_single_cell(n: int, size: int, expected: list[int]) -> None:
    assert [len(part.target) for part in in_parts(batch(0, n=n), size)] == expected


def test_further_averages_follow_their_own_decay_from_the_first_weights() -> None:
    settings = config(architecture="upstream", n_axes=32, further_ema_decays=(0.5, 0.75))
    state = TrainState.start(network(), settings)
    expected = [weights(state), weights(state)]
    for _ in training_steps(state, stream(0), settings):
        for decay, average in zip((0.5, 0.75), expected, strict=True):
            for name, w in weights(state).items():
                average[name] = decay * average[name] + (1 - decay) * w
    for average, found in zip(expected, state.further, strict=True):
        for name in average:
            torch.testing.assert_close(found[name], average[name], rtol=0, atol=1e-6)
