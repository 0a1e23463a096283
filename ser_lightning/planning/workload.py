"""What a run of the evolution will read: tokens of the pairs, and what each round trains on and scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from ser_lightning.data.layouts import PADDED, Layout
from ser_lightning.data.reader import PairStore
from ser_lightning.errors import UserError
from ser_lightning.evolution.comparisons import encode_comparisons
from ser_lightning.evolution.settings import EvolutionSettings
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
        rows: (N,) of the store, the pairs that are read.
        budget: of tokens, as the user gave it. A single pair may exceed it.
        most_pairs: pairs of a step, None = all there are.
    """
    num_tokens = store.num_tokens[rows]
    alone = num_tokens.sum(axis=1) - store.num_shared[rows] if layout.shares_prompts else 2 * num_tokens.max(axis=1)
    return fullest_batch(int(alone.max(initial=0)), most_pairs or len(rows), budget, layout)


def fullest_batch(longest: int, most_items: int, budget: int, layout: Layout = PADDED) -> int:
    """Most tokens in a batch, padding included.

    Args:
        longest: tokens of the largest item, such as a pair or a response with its prompt. It may exceed the budget.
        most_items: that there are to share a batch.
    """
    limit = min(budget, layout.max_batch_tokens or budget)
    tokens = max(longest, min(limit, longest * most_items))
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


def rounds_of(settings: EvolutionSettings, tokens: dict[str, Tokens], pairs_per_step: int) -> list[RoundWork]:
    """The work of every round, if the rule does not end the evolution before.

    Args:
        tokens: of every split, and of what is `taught` to round 0 by another run.
        pairs_per_step: pairs of an optimiser step.
    """
    found = []
    pairs, totals = ({name: getattr(one, field) for name, one in tokens.items()} for field in ("pairs", "total"))
    for number in range(settings.max_rounds + 1):
        epochs = [settings.epochs_of_phases(number, pairs["seed"], end, pairs_per_step) for end in _ends(number, pairs)]
        (trained, scored), (trained_tokens, scored_tokens) = (
            _work(settings, number, epochs, sizes) for sizes in (pairs, totals)
        )
        low, high = (end + scored_tokens for end in trained_tokens)
        found.append(RoundWork(number, trained, scored, (low, high)))
    return found


def _ends(number: int, sizes: dict[str, int]) -> tuple[int, int]:
    """The fewest and the most of the pool that a round may train on."""
    return (0, sizes["pool"]) if number else (sizes.get("taught", 0),) * 2


def _work(
    settings: EvolutionSettings, number: int, epochs: Sequence[Sequence[int]], sizes: dict[str, int]
) -> tuple[tuple[int, int], int]:
    """What a round trains on at least and at most, and what it scores."""
    is_last = number == settings.max_rounds
    ends = zip(epochs, _ends(number, sizes), strict=True)
    none, whole = (settings.phases(is_last, of_phases, sizes, selected) for of_phases, selected in ends)
    low, high = sorted(round(sum(trained for trained, _ in phases)) for phases in (none, whole))
    return (low, high), round(sum(scored for _, scored in none))


@dataclass(frozen=True)
class JudgeWork:
    """What a pairwise judge reads before the first round, once.

    Attributes:
        sequences: forward passes of one sequence: both orders of every pair.
        tokens: of all of them; of a sample's mean where there are more pairs than `SAMPLE`.
    """

    sequences: int
    tokens: int


SAMPLE = 1000
"""Pairs that are encoded for an estimate."""


def judge_work(tokenizer: PreTrainedTokenizerBase, store: PairStore, max_length: int) -> JudgeWork:
    """The work of a pairwise judge on all pairs of a store."""
    rows = np.unique(np.linspace(0, len(store) - 1, min(SAMPLE, len(store)), dtype=np.int64))
    read = sum(map(len, encode_comparisons(tokenizer, store.read_texts(rows), max_length)))
    return JudgeWork(2 * len(store), round(read * len(store) / max(1, len(rows))))


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
