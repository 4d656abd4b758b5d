"""Checkpoints: bit by bit the same after a save and a load; what is damaged or foreign is refused and not executed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from easy_problem import config, network, run, same, stream, weights, whole
from safetensors.torch import save

from squidiff.config import InputError
from squidiff.train.checkpoint import (
    Unreadable,
    load_standardisation,
    load_state,
    read_state,
    read_tensors,
    save_state,
    write_tensors,
)
from squidiff.train.loop import TrainState, training_steps


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def clones(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in tensors.items()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The state after ten steps."""
    state, _ = run(config(), 10)
    path = tmp_path / "state.safetensors"
    save_state(path, state, {}, {})
    return path


def test_twenty_steps_equal_ten_a_save_a_load_and_ten_more(saved: Path) -> None:
    expected, steps = run(config())
    settings = config(seed=99)  # the fresh state differs in all that must come from the file
    state = TrainState.start(network(settings), settings)
    assert not any(torch.equal(t, weights(expected)[name]) for name, t in weights(state).items())
    load_state(read_state(saved), state, 20)
    assert state.step == 10
    rest = list(training_steps(state, stream(10), config()))
    assert same(whole(state), whole(expected))
    for one, other in zip(rest, steps[10:], strict=True):
        assert torch.equal(one.losses.loss, other.losses.loss)
        assert one.learning_rate == other.learning_rate


def test_loading_gives_all_that_was_saved(tmp_path: Path) -> None:
    state, _ = run(config(), 10)
    state.micro_batch_size = 8
    kept = {f"best.{name}": t + 1 for name, t in state.average.items()}
    save_state(tmp_path / "s.safetensors", state, kept, {"validation_loss": float("inf")})
    fresh, saved = TrainState.start(network(), config()), read_state(tmp_path / "s.safetensors")
    load_state(saved, fresh, 20)
    assert same(whole(fresh), whole(state))
    assert same(saved.kept("best."), {name: t + 1 for name, t in state.average.items()})
    assert saved.note["validation_loss"] == float("inf")
    assert (saved.step, fresh.micro_batch_size) == (10, 8)


def test_a_changed_value_is_noticed(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-5] ^= 1
    saved.write_bytes(content)
    with pytest.raises(Unreadable, match="its values are not those that were written"):
        read_tensors(saved)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_is_refused(saved: Path, kept: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    state = TrainState.start(network(), config())
    before = weights(state)
    with pytest.raises(InputError, match=r"state\.safetensors cannot be read as a safetensors file"):
        load_state(read_state(saved), state, 20)
    assert same(weights(state), before)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.safetensors cannot be read"):
        read_tensors(tmp_path / "none.safetensors")


def test_a_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    bomb = pickle.dumps(Bomb(trace))
    pickle.loads(bomb)
    assert trace.exists()  # it is live
    trace.unlink()
    path = tmp_path / "model.safetensors"
    path.write_bytes(bomb)
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        read_tensors(path)
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        load_state(read_state(path), TrainState.start(network(), config()), 20)
    torch.save({"weights": Bomb(trace)}, path)
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        read_tensors(path)
    assert not trace.exists()


@pytest.mark.parametrize("change", [{"width": 16}, {"n_latent": 5}, {"n_blocks": 3}])
def test_the_state_of_another_model_is_refused(saved: Path, change: dict[str, int]) -> None:
    other = config(**change)
    with pytest.raises(InputError, match=r"state\.safetensors does not belong to this model"):
        load_state(read_state(saved), TrainState.start(network(other), other), 20)


def test_tensors_that_are_no_state_are_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", {"a": torch.ones(2)})
    with pytest.raises(InputError, match=r"t\.safetensors does not belong to this model"):
        load_state(read_state(tmp_path / "t.safetensors"), TrainState.start(network(), config()), 20)


def rewritten(saved: Path, without: str = " ", note: object = None) -> Path:
    """The state without the tensors whose names begin so, or with another note."""
    tensors, said = read_tensors(saved)
    kept = {name: t for name, t in tensors.items() if not name.startswith(without)}
    write_tensors(saved, kept, said if note is None else note)  # type: ignore[arg-type]
    return saved


@pytest.mark.parametrize("part", ["weights.", "average.", "optimizer.", "generator"])
def test_a_state_with_a_part_missing_is_refused_with_what_to_do(saved: Path, part: str) -> None:
    with pytest.raises(InputError, match=r"does not belong to this model .*: delete its folder to start anew, or name"):
        load_state(read_state(rewritten(saved, part)), TrainState.start(network(), config()), 20)


@pytest.mark.parametrize(
    "note",
    [
        {"step": 10},
        {"validation_loss": 0.5},
        {"step": 21, "validation_loss": 0.5},
        {"step": None, "validation_loss": 1},
    ],
)
def test_a_state_with_another_note_is_refused(saved: Path, note: dict[str, object]) -> None:
    with pytest.raises(InputError, match="does not belong to this model"):
        load_state(read_state(rewritten(saved, note=note)), TrainState.start(network(), config()), 20)


def with_note(path: Path, note: str) -> Path:
    """Of no run of ours."""
    path.write_bytes(save({"a": torch.ones(2)}, {"note": note}))
    return path


def test_a_note_that_is_no_object_is_refused(saved: Path) -> None:
    with pytest.raises(InputError, match="its note is no JSON object"):
        read_tensors(with_note(saved, "[1]"))


def test_the_standardisation_of_a_state_comes_back_or_is_missed(saved: Path) -> None:
    found = load_standardisation(read_state(saved))
    assert torch.equal(found.axes, network().denoiser.gaussian.axes)
    assert torch.equal(found.scale, network().scale)
    with pytest.raises(InputError, match=r"does not belong to this model \('\w+'\): delete its folder"):
        load_standardisation(read_state(rewritten(saved, "buffers.")))


def test_tensors_and_note_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "one value": torch.zeros(1, 3)[:, :1].T,
        "repeated": torch.ones(1).expand(1, 1),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "scalar": torch.tensor(float("nan"), dtype=torch.float64),
    }
    write_tensors(tmp_path / "deep" / "t.safetensors", tensors, {"µ": [1, None]})
    read, note = read_tensors(tmp_path / "deep" / "t.safetensors")
    assert note == {"µ": [1, None]}
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].nan_to_num(-1), tensor.nan_to_num(-1))


def test_a_save_that_fails_leaves_the_earlier_file(saved: Path) -> None:
    """A safetensors file cannot hold two names for overlapping memory: writing stops, and the old file is whole."""
    before = saved.read_bytes()
    shared = torch.ones(4)
    with pytest.raises(RuntimeError, match="share memory"):
        write_tensors(saved, {"a": shared, "b": shared})
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
