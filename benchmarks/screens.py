"""How well the anchor knows what simulated screens left out, beside the baselines, where answers follow known laws.

    python benchmarks/screens.py [combinations] [contexts] [donors] [conditions] [doses] [times] [--seeds 10 11 12]

Each screen: counts of 400 genes (about 1,500 a cell, negative binomial) of 80 cells a population, from control profiles
and effects in logarithms, log-normalised; the truth is the mean of 500 more cells. Prints, by the law that the screen
follows, the squared error of the mean as a share of the squared shift / delta Pearson, of the anchor and of the four
best baselines, over all that was left out and all seeds. LOSES marks where the best baseline errs less than the anchor
by more than 5 %. Last, how many genes' shifts, as 80 true cells have them, lie in the intervals of 50 and 90 %.
The laws were chosen while building, nothing was fitted to these seeds.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from squidiff.config import CONTEXT_SEPARATOR
from squidiff.data.simulate import gamma_poisson
from squidiff.response.groups import BASELINES
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import CannotPredict
from squidiff.response.stack import Anchor
from squidiff.response.uncertainty import Uncertainty

N_GENES = 400
N_CELLS = 80
ANCHOR, HELD = "the model's anchor", "held"
Profiles = dict[Population, np.ndarray]
"""The logarithm of each gene's share of the counts, by population."""


class Screen(NamedTuple):
    """What is there to learn from, what is asked for, and what describes conditions."""

    seen: Profiles
    asked: Profiles
    features: dict[str, np.ndarray]
    n_control: int = 4 * N_CELLS
    """Control cells of a context; with times they are as many as any."""


def some(rng: np.random.Generator, share: float, *shape: int, sd: float = 1.0) -> np.ndarray:
    """Effects of `share` of the genes."""
    return rng.normal(0, sd, (*shape, N_GENES)) * (rng.random((*shape, N_GENES)) < share)


def base(rng: np.random.Generator, n_contexts: int) -> np.ndarray:
    return rng.normal(0, 2, N_GENES) + some(rng, 0.3, n_contexts, sd=0.5)


def one_hot(conditions: list[str]) -> dict[str, np.ndarray]:
    """Their number of parts, and which ones."""
    names = sorted({part for condition in conditions for part in condition.split(" + ")})
    return {c: np.array([c.count("+") + 1, *(float(n in c.split(" + ")) for n in names)]) for c in conditions}


def combinations(rng: np.random.Generator, law: str) -> Screen:
    """Single conditions and some pairs; 12 pairs that were not seen, or not in this context, are asked for."""
    few, elsewhere = law.endswith("few seen"), law == "seen elsewhere"
    n_single, n_seen, n_contexts = (
        8 if few or elsewhere else 20,
        4 if few else 12 if elsewhere else 30,
        4 if elsewhere else 1,
    )
    start, single = base(rng, n_contexts), some(rng, 0.15, n_single, sd=0.9)
    if law.startswith("overlapping"):
        single += some(rng, 0.15, 5)[rng.integers(0, 5, n_single)] * 0.8
    shared = some(rng, 0.15, sd=0.6) if law == "one shared effect" else 0.0
    pairs = [tuple(pair) for pair in rng.permutation(list(itertools.combinations(range(n_single), 2)))]
    asked = pairs[:12] if elsewhere else pairs[n_seen : n_seen + 12]
    seen, wanted = {}, {}
    own = {pair: some(rng, 0.15, sd=0.6 if elsewhere else 0.3) for pair in pairs}
    for c in range(n_contexts):
        here = single * (1 + 0.2 * rng.normal(size=single.shape)) if n_contexts > 1 else single
        seen[Population(f"c{c}", "", None)] = start[c]
        seen |= {Population(f"c{c}", f"k{k:02d}", None): start[c] + here[k] for k in range(n_single)}
        for one, other in {*pairs[:n_seen], *asked}:
            total = here[one] + here[other]
            if law.startswith("saturating"):
                total = np.tanh(total / 1.5)
            elif law.startswith("means"):
                total = total / 2
            elif law.startswith("overlapping"):
                total = np.where(np.abs(here[one]) > np.abs(here[other]), here[one], here[other])
            is_asked = (one, other) in asked and c == 0
            key = Population(f"c{c}", f"k{min(one, other):02d} + k{max(one, other):02d}", None)
            (wanted if is_asked else seen)[key] = start[c] + total + shared + own[one, other]
    return Screen(seen, wanted, one_hot([key.condition for key in (*seen, *wanted) if key.condition]))


def contexts(rng: np.random.Generator, law: str) -> Screen:
    """Six contexts under 25 conditions; each lacks 40 %, or the first all, or all but four; 15 are asked for."""
    place = rng.normal(size=(6, 2))
    start = rng.normal(0, 2, N_GENES) + place @ (rng.normal(0, 0.5, (2, N_GENES)) * (rng.random((2, N_GENES)) < 0.3))
    effect, otherwise = some(rng, 0.15, 25), some(rng, 0.15, 25)
    group, strength, common = rng.integers(0, 2, 6), rng.uniform(0.3, 1.7, 6), some(rng, 0.15, 6, sd=0.8)
    seen, wanted = {}, {}
    n_of_first = 4 if law.endswith("few seen") else 0 if law.endswith("none seen") else None
    for c in range(6):
        seen[Population(f"c{c}", "", None)] = start[c]
        for k in range(25):
            here = effect[k]
            if law.startswith("as control cells"):
                way = np.random.default_rng(k).normal(size=(N_GENES, 2))
                here = here * (1 + 0.9 * np.tanh(way @ place[c]))
            elif law.startswith("strength"):
                here = here * strength[c]
            elif law.startswith("two kinds"):
                here = otherwise[k] if group[c] else here
            elif law.startswith("one more effect"):
                here = here + common[c]
            else:
                here = here * (1 + 0.5 * rng.normal(size=N_GENES))
            lacks = rng.random() < 0.4 if n_of_first is None else c == 0 and k >= n_of_first
            (wanted if lacks else seen)[Population(f"c{c}", f"k{k:02d}", None)] = start[c] + here
    known = {key.condition for key in seen}
    asked = [key for key in wanted if key.condition in known]
    chosen = [asked[i] for i in rng.permutation(len(asked))[:15]]
    return Screen(seen, {key: wanted[key] for key in chosen}, one_hot(sorted(known - {""})))


def donors(rng: np.random.Generator, law: str) -> Screen:
    """Four cell types in five donors under one condition or three, of which six of the 20 lack the first one.

    Or one type in 20 donors who are nearly alike, with 12 control cells each.
    """
    if law == "alike, few control cells":
        return alike_donors(rng)
    start, n_conditions = rng.normal(0, 2, N_GENES), 3 if law.endswith("three conditions") else 1
    of_type, of_donor = some(rng, 0.4, 4, sd=0.8), some(rng, 0.15, 5, sd=0.35)
    effect = some(rng, 0.2, n_conditions)[:, None] + some(rng, 0.2, n_conditions, 4, sd=0.6 if "types" in law else 0.2)
    strength = rng.uniform(0.4, 1.6, 5) if "strength" in law else np.ones(5)
    own = some(rng, 0.15, 5, sd=0.6) if "own" in law else np.zeros((5, N_GENES))
    pairs = list(itertools.product(range(4), range(5)))
    lack = {pairs[i] for i in rng.permutation(len(pairs))[:6]}
    seen, wanted = {}, {}
    for t, d in pairs:
        here = start + of_type[t] + of_donor[d]
        seen[Population(f"t{t}{CONTEXT_SEPARATOR}d{d}", "", None)] = here
        for k in range(n_conditions):
            change = effect[k, t] * strength[d] * (1 + 0.15 * rng.normal(size=N_GENES)) + own[d]
            of = wanted if k == 0 and (t, d) in lack else seen
            of[Population(f"t{t}{CONTEXT_SEPARATOR}d{d}", f"k{k}", None)] = here + change
    return Screen(seen, wanted, one_hot([f"k{k}" for k in range(n_conditions)]))


def alike_donors(rng: np.random.Generator) -> Screen:
    start, effect, own = (
        rng.normal(0, 2, N_GENES) + some(rng, 0.3, 20, sd=0.2),
        some(rng, 0.2),
        some(rng, 0.15, 20, sd=0.4),
    )
    seen, wanted = {}, {}
    for d in range(20):
        seen[Population(f"d{d}", "", None)] = start[d]
        (wanted if d < 4 else seen)[Population(f"d{d}", "k0", None)] = start[d] + effect + own[d]
    return Screen(seen, wanted, one_hot(["k0"]), n_control=12)


def conditions(rng: np.random.Generator, law: str) -> Screen:
    """120 described conditions of one context, or four or two; 20 more are asked for."""
    n = 20 + {"groups, four seen": 4, "groups, two seen": 2}.get(law, 120)
    n_features, n_groups = 8 if law.endswith("few features") else 64, 12
    group, start = rng.integers(0, n_groups, n), base(rng, 1)[0]
    strength = rng.uniform(0.3, 1.3, n) * (rng.random(n) > 0.3)
    effects = strength[:, None] * (some(rng, 0.15, n_groups)[group] + 0.5 * some(rng, 0.1, n))
    described = rng.normal(size=(n_groups, n_features))[group] + 0.5 * rng.normal(size=(n, n_features))
    if law.startswith("linear"):
        described = rng.normal(size=(n, n_features))
        effects = described @ rng.normal(size=(n_features, 6)) / np.sqrt(n_features) @ (0.7 * some(rng, 0.2, 6))
        effects = effects + 0.5 * some(rng, 0.1, n)
    elif law.startswith("features of noise"):
        described, effects = rng.normal(size=(n, n_features)), effects + some(rng, 0.2, sd=0.6) * strength[:, None]
    keys = [Population("c0", f"k{i:03d}", None) for i in range(n)]
    profiles = {key: start + effect for key, effect in zip(keys, effects, strict=True)}
    seen = {Population("c0", "", None): start} | {key: profiles[key] for key in keys[20:]}
    features = {key.condition: np.array([1.0, *row]) for key, row in zip(keys, described, strict=True)}
    return Screen(seen, {key: profiles[key] for key in keys[:20]}, features)


def doses(rng: np.random.Generator, law: str) -> Screen:
    """Curves over four doses of twelve drugs in four contexts, of which the first lacks one dose of all.

    Beyond the highest of four drugs nobody was given any; one context has the least to tell of them. There the highest
    may be toxic, of all drugs alike.
    """
    lacking, n_contexts = {"lowest": 1, "second": 10}.get(law, 1000), 1 if "one context" in law else 4
    toxic = some(rng, 0.25, sd=1.3) if law.endswith("toxic") else 0.0
    start, effect, half = base(rng, 4), some(rng, 0.2, 12, sd=1.3), 10 ** rng.uniform(0, 3, 12)
    seen, wanted, features = {}, {}, {}
    for c in range(n_contexts):
        seen[Population(f"c{c}", "", None)] = start[c]
        for k in range(12):
            here = effect[k] * (1 + 0.3 * rng.normal(size=N_GENES))
            for dose in (1, 10, 100, 1000):
                name, strength = f"k{k:02d} @ {dose}", np.log10(dose + 1)
                features[name] = np.array([strength, *(strength * (np.arange(12) == k))])
                lacks = dose == lacking and (k < 4 if law.startswith("beyond") else c == 0)
                profile = start[c] + here * dose**1.5 / (dose**1.5 + half[k] ** 1.5) + toxic * (dose == 1000)
                if not lacks or c == 0:
                    (wanted if lacks else seen)[Population(f"c{c}", name, None)] = profile
    return Screen(seen, wanted, features)


def times(rng: np.random.Generator, law: str) -> Screen:
    """Courses over five times, of contexts without a control or of six conditions in one; one lacks a time.

    Of one context alone the last of five, or of three, lacks. At the last time conditions may be washed out.
    """
    n_times = 3 if "two seen" in law else 5
    t, ends = np.arange(n_times)[:, None], {"first": 1.0, "last": n_times - 1.0, "washout": n_times - 1.0}
    asked = ends.get(law.split(",")[0], 2.0)

    def course(height: np.ndarray) -> np.ndarray:
        middle, width = rng.uniform(0, n_times - 1, N_GENES), rng.uniform(0.5, 1.5, N_GENES)
        pulse = height * np.exp(-((t - middle) ** 2) / (2 * width**2))
        return np.where(rng.random(N_GENES) < 0.4, pulse, height / (1 + np.exp(-2 * (t - middle) / width)))

    seen: Profiles = {}
    wanted: Profiles = {}
    if "conditions" in law:
        start, drift, core = base(rng, 1)[0], course(some(rng, 0.2, sd=0.7)), course(some(rng, 0.3, sd=1.3))
        for k in range(7):
            here = rng.uniform(0.5, 1.2) * core * (1 + 0.5 * rng.normal(size=N_GENES)) if k else 0 * core
            for time in range(n_times):
                key = Population("c0", f"k{k}" if k else "", float(time))
                effect = 0 * here[time] if law.startswith("washout") and time == asked else here[time]
                (wanted if k == 1 and time == asked else seen)[key] = start + drift[time] + effect
        return Screen(seen, wanted, one_hot([f"k{k}" for k in range(1, 7)]))
    start, shared = base(rng, 4), course(some(rng, 0.35, sd=1.3))
    for c in range(1 if "alone" in law else 4):
        own = course(some(rng, 0.35, sd=1.3))
        here = own if "own" in law else shared * (1 + 0.3 * rng.normal(size=N_GENES))
        for time in range(n_times):
            key = Population(f"c{c}", "", float(time))
            (wanted if c == 0 and time == asked else seen)[key] = start[c] + here[time]
    return Screen(seen, wanted, {})


SCREENS: dict[str, tuple[Callable[[np.random.Generator, str], Screen], tuple[str, ...]]] = {
    "combinations": (
        combinations,
        (
            "sums",
            "sums, few seen",
            "saturating",
            "overlapping",
            "means, few seen",
            "one shared effect",
            "seen elsewhere",
        ),
    ),
    "contexts": (
        contexts,
        (
            "by chance",
            "as control cells are",
            "strength",
            "two kinds",
            "one more effect",
            "as control cells are, few seen",
            "strength, few seen",
            "two kinds, few seen",
            "one more effect, none seen",
        ),
    ),
    "donors": (
        donors,
        (
            "types",
            "strength",
            "types and strength",
            "own effects",
            "strength, three conditions",
            "own effects, three conditions",
            "alike, few control cells",
        ),
    ),
    "conditions": (
        conditions,
        ("groups", "groups, few features", "groups, four seen", "groups, two seen", "linear", "features of noise"),
    ),
    "doses": (doses, ("lowest", "second", "highest", "beyond", "beyond, one context", "beyond, one context, toxic")),
    "times": (
        times,
        (
            "between",
            "between, own ways",
            "last",
            "last, alone",
            "last, alone, two seen",
            "between, conditions",
            "last, conditions",
            "first, conditions",
            "washout, conditions",
        ),
    ),
}


def summaries(
    profiles: Profiles, features: dict[str, np.ndarray], n_cells: int, n_control: int, rng: np.random.Generator
) -> Populations:
    """Of drawn cells; `n_control` control cells without a time."""
    drawn = []
    for key, profile in profiles.items():
        share = np.exp(profile - profile.max())
        library = 1500 * np.exp(rng.normal(0, 0.3, n_cells if key.condition or key.time is not None else n_control))
        counts = gamma_poisson(library[:, None] * share / share.sum(), 0.4, rng)
        drawn.append(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4))
    size = len(next(iter(features.values()), [0.0]))
    described = np.array([features.get(key.condition, np.zeros(size)) for key in profiles])
    population = np.repeat(np.arange(len(profiles)), [len(cells) for cells in drawn])
    return Populations.summarise(
        [np.concatenate(drawn)], population, tuple(profiles), described, has_control=bool(features)
    )


def scores(screen: Screen, rng: np.random.Generator) -> Iterator[tuple[str, tuple[float, ...]]]:
    """The method, and its squared error, the squared shift and the correlation of both, of everything asked for.

    Under HELD the shares of genes whose shift lies in the intervals of 50 and 90 %.
    """
    seen, true, few = (
        summaries(profiles, screen.features, n_cells, screen.n_control, rng)
        for profiles, n_cells in ((screen.seen, N_CELLS), (screen.asked, 500), (screen.asked, N_CELLS))
    )
    methods = {name: made().fit(seen) for name, made in BASELINES.items() if name != "training mean"}
    anchor = Anchor().fit(seen)
    uncertainty = Uncertainty(anchor)
    for i, key in enumerate(true.keys):
        start = seen.source(key)
        assert start is not None  # every context has cells to start from
        source, mean = Source(seen.keys[start], seen.mean[start]), true.mean[i]
        guess, _, group = anchor.answer(key, true.features[i], source)
        bounds, shift = uncertainty.interval(key, guess, group, source).bounds, few.mean[i] - source.mean
        yield (
            HELD,
            tuple(float(((low <= shift) & (shift <= high))[source.mean > 0].mean()) for low, high in bounds.values()),
        )
        guesses = {ANCHOR: guess}
        for name, method in methods.items():
            try:
                guesses[name] = method.predict(key, true.features[i], source)
            except CannotPredict:
                continue
        for name, guess in guesses.items():
            changes = np.stack([guess, mean]) - source.mean
            alike = float(np.corrcoef(changes)[0, 1]) if changes.any(axis=1).all() else np.nan
            yield name, (float(np.square(guess - mean).sum()), float(np.square(changes[1]).sum()), alike)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("screens", nargs="*", metavar="screen", help=", ".join(SCREENS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    arguments = parser.parse_args()
    for name in arguments.screens or SCREENS:
        make, laws = SCREENS[name]
        sys.stdout.write(f"\n{name}\n")
        for law in laws:
            rows: dict[str, list[tuple[float, ...]]] = {}
            for seed in arguments.seeds:
                rng = np.random.default_rng(seed)
                for method, row in scores(make(rng, law), rng):
                    rows.setdefault(method, []).append(row)
            held = np.mean(rows.pop(HELD), axis=0)
            share = {method: sum(r[0] for r in of) / sum(r[1] for r in of) for method, of in rows.items()}
            alike = {method: np.mean([r[2] for r in of if np.isfinite(r[2])] or [0]) for method, of in rows.items()}
            best = sorted((m for m in share if m != ANCHOR), key=share.__getitem__)[:4]
            verdict = " LOSES" if share[ANCHOR] > 1.05 * share[best[0]] else ""
            told = [f"{method} {share[method]:.3f} / {alike[method]:.3f}" for method in best]
            sys.stdout.write(f"  {law}: anchor {share[ANCHOR]:.3f} / {alike[ANCHOR]:.3f}{verdict}; {'; '.join(told)}; ")
            sys.stdout.write(f"held {held[0]:.2f} and {held[1]:.2f}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
