"""What a run of the evolution will read: tokens of the pairs, and what each round trains on and scores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ser_lightning.data.layouts import Layout
from ser_lightning.data.reader import PairStore
from ser_lightning.errors import UserError
from ser_lightning.runs.files import read_rounds


@dataclass(frozen=True)
class Tokens:
    """The tokens of some pairs.

    Attributes:
        pairs: N.
        median: tokens of a pair, both conversations together.
        high: their 95th percentile.
        total: of all N pairs.
        shared: tokens that both conversations of a pair begin with, counted once a pair, over all N.
    """

    pairs: int
    median: int
    high: int
    total: int
    shared: int

    @property
    def prompt_share(self) -> float:
        """Share of the tokens that stand in a beginning that both conversations of a pair have."""
        return 2 * self.shared / max(1, self.total)

    @property
    def saved_share(self) -> float:
        """Share of the tokens that need no computing where prompts are shared."""
        return self.shared / max(1, self.total)


def count_tokens(num_tokens: np.ndarray, num_shared: np.ndarray) -> Tokens:
    """The figures of N pairs.

    Args:
        num_tokens: (N, 2) tokens of both conversations.
        num_shared: (N,) tokens that both begin with.
    """
    sums = num_tokens.sum(axis=1)
    median, high = np.percentile(sums, (50, 95)) if len(sums) else (0, 0)
    return Tokens(len(sums), int(median), int(high), int(sums.sum()), int(num_shared.sum()))


def largest_batch(
    store: PairStore, rows: np.ndarray, layout: Layout, budget: int, most_pairs: int | None = None
) -> int:
    """Most tokens that a micro-batch can hold, padding included.

    Args:
        store: the encoded pairs.
        rows: (N,) of the store, the pairs that are read.
        layout: of the sequences.
        budget: of tokens, as the user gave it. A single pair may exceed it.
        most_pairs: pairs of a step, None = all there are.
    """
    num_tokens = store.num_tokens[rows]
    alone = num_tokens.sum(axis=1) - store.num_shared[rows] if layout.shares_prompts else 2 * num_tokens.max(axis=1)
    longest = int(alone.max(initial=0))
    limit = min(budget, layout.max_batch_tokens or budget)
    tokens = max(longest, min(limit, longest * (most_pairs or len(rows))))
    return -(-tokens // layout.row_multiple) * layout.row_multiple


@dataclass(frozen=True)
class RoundWork:
    """What a round reads. Of the pool it trains on anything from no pair to all of them; a range has both ends.

    Attributes:
        round: 0 is the seed model.
        trained_pairs: how often it trains on a pair, all phases and epochs together.
        scored_pairs: how often it scores one.
        tokens: of both, as `rounds.csv` counts them.
    """

    round: int
    trained_pairs: tuple[int, int]
    scored_pairs: int
    tokens: tuple[int, int]


def rounds_of(evolution: Any, tokens: dict[str, Tokens]) -> list[RoundWork]:
    """The work of every round, if the rule does not end the evolution before.

    Args:
        evolution: the settings, as `EvolutionCallback` has them.
        tokens: of every split.
    """
    seed, pool, test = (tokens[name] for name in ("seed", "pool", "test"))
    return [_round_work(r, evolution, seed, pool, test) for r in range(evolution.max_rounds + 1)]


def _round_work(number: int, evolution: Any, seed: Tokens, pool: Tokens, test: Tokens) -> RoundWork:
    folds = evolution.folds
    labellings = 1 + (folds if number < evolution.max_rounds else 0)

    def passes(num_pool: int) -> tuple[int, int]:
        """How often the seed and so many pool pairs are trained on: in `folds` phases without a fold, and in one."""
        main = evolution.phase_epochs(number, seed.pairs + num_pool)
        fold = evolution.phase_epochs(number, seed.pairs * (1 - 1 / folds) + num_pool) if folds else 0
        return main + fold * max(0, folds - 1), main + fold * folds

    def work(field: str) -> tuple[list[int], int]:
        s, p, t = (int(getattr(part, field)) for part in (seed, pool, test))
        ends = [passes(0)[0] * s]
        if number:
            of_seed, of_pool = passes(pool.pairs)
            ends.append(of_seed * s + of_pool * p)
        return [min(ends), max(ends)], (s if folds else 0) + labellings * p + t

    trained, scored = work("pairs")
    trained_tokens, scored_tokens = work("total")
    low, high = (tokens + scored_tokens for tokens in trained_tokens)
    return RoundWork(number, (trained[0], trained[1]), scored, (low, high))


def read_rate(run: Path) -> float:
    """Tokens a second of a run's rounds, training and scoring together.

    Raises:
        UserError: the folder has no finished round.
    """
    rows = read_rounds(run)
    seconds = sum(row["seconds"] for row in rows)
    if not seconds:
        raise UserError(f"--like: {run} has rounds of 0 seconds; give a longer run, or --pairs_per_second")
    return sum(row["tokens"] for row in rows) / seconds
