"""Do the intervals of `compare --unlabelled` hold what they should hold, and how much narrower are they?

    python -m benchmarks.prediction_powered.run   # makes the conditions that are missing, a quarter of an hour
    python -m benchmarks.tables                   # writes the table into docs/evaluation.md

Pairs are drawn from a distribution whose true accuracies are known. Each draw makes the intervals that `compare` would
report; a row counts how many hold the truth. In the conditions of `WORLDS` two models are given, of different noise.
In those of `OWN_POOL` a model is trained on few labels, labels the unlabelled pairs itself and is trained again on all;
the interval is that of this second model's accuracy, with predictions by itself or by the model that it was before.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from scipy import integrate, stats
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.prediction_powered.tables import RESULTS
from benchmarks.shared.results import Run, versions
from benchmarks.shared.runs import run_missing
from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.evaluation.prediction_powered import (
    MIN_PROMPTS,
    Estimate,
    estimate,
    estimates,
    expected_credit,
)

WORLD_DRAWS, OWN_POOL_DRAWS = 500, 1000
TRUTH_PROMPTS = 300_000


@dataclass(frozen=True)
class World:
    """Two models and the pairs that they are compared on."""

    prompts: int
    """With labels."""
    pool_prompts: int
    """Without."""
    pairs_per_prompt: int = 1
    is_shared: bool = False
    """Which pairs have a label is drawn pair by pair, so prompts stand on both sides; otherwise prompt by prompt."""
    spread: float = 2.0
    """Of the difference of the true rewards, in logits: how clear the better response is."""
    is_blind: bool = False
    """How sure the models are has nothing to do with how right they are."""
    min_prompts: int = MIN_PROMPTS
    """With fewer the labels decide alone."""


WORLDS = {
    "100 labels": World(100, 1000),
    "100 labels, clear pairs": World(100, 1000, spread=6.0),
    "100 labels, blind confidence": World(100, 1000, is_blind=True),
    "200 labels": World(200, 2000),
    "200 labels, as many unlabelled": World(200, 200),
    "100 prompts of 3 pairs": World(100, 1000, 3),
    "300 labels, prompts on both sides": World(100, 1000, 3, is_shared=True),
    "60 labels, if they were enough": World(60, 600, min_prompts=60),
    "60 labels, clear pairs, if they were enough": World(60, 600, spread=6.0, min_prompts=60),
}


def draw(world: World, num_prompts: int, generator: np.random.Generator) -> tuple[Tensor, list[Tensor], np.ndarray]:
    """(N,) labels, (N,) margins of both models, (N,) prompts. Pairs of a prompt share half of the noise."""
    per = world.pairs_per_prompt
    size = num_prompts * per
    within = lambda values: np.repeat(values, per)  # noqa: E731
    clear = within(generator.lognormal(0, 0.5, num_prompts))
    logit = world.spread * clear * generator.normal(size=size)
    target = torch.from_numpy((generator.random(size) < expit(logit)).astype(float))
    margins = []
    for noise in (2.0, 0.5):
        shared, own = within(generator.normal(size=num_prompts)), generator.normal(size=size)
        margin = 1.7 * (logit + noise * (shared + own) / 2**0.5)
        margins.append(np.sign(margin) * generator.exponential(1, size) if world.is_blind else margin)
    return target, [torch.from_numpy(one) for one in margins], within(np.arange(num_prompts))


def world_intervals(world: World, num_draws: int, seed: int) -> Iterator[tuple[str, Estimate, float]]:
    """Figure, its interval and its true value, for all draws."""
    generator = np.random.default_rng(seed)
    target, margins, _ = draw(world, TRUTH_PROMPTS, generator)
    true_a, true_b = (float(half_credit(margin, target).mean()) for margin in margins)
    truth = {"accuracy_a": true_a, "accuracy_b": true_b, "difference": true_b - true_a}
    num_labels = world.prompts * world.pairs_per_prompt
    for _ in range(num_draws):
        target, margins, prompt = draw(world, world.prompts + world.pool_prompts, generator)
        order = generator.permutation(len(target)) if world.is_shared else np.arange(len(target))
        some, rest = order[:num_labels], order[num_labels:]
        credit = [half_credit(margin[some], target[some]) for margin in margins]
        prob, pool = ([torch.sigmoid(margin[rows]) for margin in margins] for rows in (some, rest))
        found = estimates(credit, prob, pool, prompt[some], prompt[rest], world.min_prompts)
        for name, one in found.items():
            yield name, one, truth[name]


@dataclass(frozen=True)
class OwnPool:
    """A model that has trained on its own labels of the unlabelled pairs."""

    predictor: str
    """`itself` or `seed model`."""
    seed_labels: int = 100
    pool: int = 200
    labels: int = 200
    features: int = 60


OWN_POOL = {"own pool, predicted by itself": OwnPool("itself"), "own pool, by its seed model": OwnPool("seed model")}


def fit(x: np.ndarray, label: np.ndarray, penalty: float) -> np.ndarray:
    """Weights of a logistic regression on differences, which has no intercept."""
    return LogisticRegression(C=1 / penalty, fit_intercept=False).fit(x, label).coef_[0]


def true_accuracy(weight: np.ndarray, true_weight: np.ndarray) -> float:
    """Of a linear model on normal features, by an integral over the true margin."""
    size = float(np.linalg.norm(true_weight))
    cosine = float(weight @ true_weight) / size / float(np.linalg.norm(weight))
    slope = cosine / (size * (1 - cosine**2) ** 0.5)

    def density(margin: float) -> float:
        says_a, is_a = stats.norm.cdf(slope * margin), expit(margin)
        return float((says_a * is_a + (1 - says_a) * (1 - is_a)) * stats.norm.pdf(margin, scale=size))

    return float(integrate.quad(density, -8 * size, 8 * size, points=[0.0])[0])


def own_pool_intervals(case: OwnPool, num_draws: int, seed: int) -> Iterator[tuple[str, Estimate, float]]:
    """As `world_intervals`; the model, and so the truth, is another one in each draw."""
    generator = np.random.default_rng(seed)
    true_weight = np.zeros(case.features)
    true_weight[:5] = 3.0
    for _ in range(num_draws):
        sizes = case.seed_labels, case.pool, case.labels
        seed_x, pool_x, test_x = (generator.normal(size=(size, case.features)) for size in sizes)
        seed_y, test_y = ((generator.random(len(x)) < expit(x @ true_weight)).astype(float) for x in (seed_x, test_x))
        seed_weight = fit(seed_x, seed_y, penalty=1.0)
        own_labels = (pool_x @ seed_weight > 0).astype(float)
        weight = fit(np.concatenate([seed_x, pool_x]), np.concatenate([seed_y, own_labels]), penalty=0.1)
        credit = half_credit(torch.from_numpy(test_x @ weight), torch.from_numpy(test_y))
        by = weight if case.predictor == "itself" else seed_weight
        test, pool = (expected_credit(torch.from_numpy(expit(x @ by))) for x in (test_x, pool_x))
        number = np.arange(case.labels), case.labels + np.arange(case.pool)
        yield "accuracy_a", estimate(credit, test, pool, *number), true_accuracy(weight, true_weight)


def summary(found: Iterator[tuple[str, Estimate, float]]) -> list[Run]:
    """For each figure how often the interval held the truth, of the labels alone too, and how wide it was."""
    rows: dict[str, list[list[float]]] = {}
    for name, one, truth in found:
        hits = one.low <= truth <= one.high, one.labels_low <= truth <= one.labels_high
        widths = one.width, one.labels_width
        rows.setdefault(name, []).append([*map(float, hits), one.uses_unlabelled, *widths, one.value - truth])
    names = ("covered", "labels_covered", "used", "width", "labels_width", "error")
    return [
        {"figure": name, **{k: round(float(v), 5) for k, v in zip(names, np.mean(values, 0), strict=True)}}
        for name, values in rows.items()
    ]


def run_one(condition: str, num_draws: int | None = None) -> Run:
    """A line of the results, of as many draws as the study takes unless told otherwise."""
    torch.set_num_threads(1)
    world, seed = WORLDS.get(condition), [*WORLDS, *OWN_POOL].index(condition)
    num_draws = num_draws or (OWN_POOL_DRAWS if world is None else WORLD_DRAWS)
    if world is not None:
        found, settings = world_intervals(world, num_draws, seed), asdict(world)
    else:
        case = OWN_POOL[condition]
        found, settings = own_pool_intervals(case, num_draws, seed), asdict(case)
    made_with = versions("numpy", "scipy", "torch", "scikit-learn")
    return {
        "condition": condition,
        "number": seed,
        "draws": num_draws,
        **settings,
        "figures": summary(found),
        "versions": made_with,
    }


if __name__ == "__main__":
    run_missing(RESULTS, [(name,) for name in (*OWN_POOL, *WORLDS)], partial(run_one), jobs=1)
