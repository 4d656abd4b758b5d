"""Samplers under one contract: a generator over noise levels that calls `predict(x, level) -> Prediction`.

Each yields x at the second level, the third, and so on to the last. Conditioning is bound before the call; noise is
passed in as x; nothing here is random. Levels may run down (sampling) or up (inversion). Their numbers are combined in
the levels' own precision, on the CPU, and reach x's device as single numbers of its precision.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from squidiff.config import NoiseLevel
from squidiff.diffusion.loss import Denoise


def sample_ddim(predict: Denoise, x: torch.Tensor, levels: Sequence[NoiseLevel]) -> Iterator[torch.Tensor]:
    """DDIM with eta 0 (Song et al. 2021, eq. 12): x' = alpha' x0 + sigma' eps. Order 1; x is B x G at levels[0]."""
    for here, there in itertools.pairwise(levels):
        x0, eps = predict(x, here)
        x = there.alpha.to(x) * x0 + there.sigma.to(x) * eps
        yield x


def sample_dpmpp_2m(predict: Denoise, x: torch.Tensor, levels: Sequence[NoiseLevel]) -> Iterator[torch.Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2). Order 2, one evaluation a step; x is B x G at levels[0].

    With lambda = log(alpha / sigma), h = lambda' - lambda and r = h_previous / h:
    x' = (sigma' / sigma) x - alpha' (exp(-h) - 1) D,  D = (1 + 1 / 2r) x0 - (1 / 2r) x0_previous.
    The first step has no previous x0 and is DDIM's, and so is a step to sigma = 0, where lambda is infinite.
    """
    previous: tuple[torch.Tensor, torch.Tensor] | None = None
    for here, there in itertools.pairwise(levels):
        x0 = predict(x, here).x0
        h = _log_ratio(there) - _log_ratio(here)
        estimate = x0
        if previous is not None and there.sigma > 0:
            previous_x0, previous_h = previous
            estimate = x0 + (h / (2 * previous_h)).to(x) * (x0 - previous_x0)
        x = (there.sigma / here.sigma).to(x) * x - (there.alpha * torch.expm1(-h)).to(x) * estimate
        previous = (x0, h)
        yield x


def invert_ddim(predict: Denoise, x: torch.Tensor, levels: Sequence[NoiseLevel]) -> Iterator[torch.Tensor]:
    """The noise that `sample_ddim` would turn into x: the same steps over the levels reversed; x is at levels[-1]."""
    return sample_ddim(predict, x, list(reversed(levels)))


def last(states: Iterable[torch.Tensor]) -> torch.Tensor:
    """The last state of a sampler: x at its last level. Raises IndexError when there is no step."""
    return deque(states, maxlen=1).pop()


def _log_ratio(level: NoiseLevel) -> torch.Tensor:
    return torch.log(level.alpha) - torch.log(level.sigma)


Sampler = Callable[[Denoise, torch.Tensor, Sequence[NoiseLevel]], Iterator[torch.Tensor]]
SAMPLERS: dict[str, Sampler] = {"ddim": sample_ddim, "dpmpp_2m": sample_dpmpp_2m}
