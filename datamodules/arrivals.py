"""Pairs that arrive after the splits were made. What was split before stays where it is."""

from collections import Counter
from dataclasses import replace

import numpy as np

from ser_lightning.data.store import CONTRADICTION, UNLABELLED
from ser_lightning.datamodules.splitting import Splits


def add_arrival(
    splits: Splits,
    rows: np.ndarray,
    pair_id: np.ndarray,
    dialogue_id: np.ndarray,
    labels: np.ndarray,
    between: Counter[str],
) -> Splits:
    """The splits with newly arrived rows: labelled ones join the seed, the others the pool.

    A label for a pair of the pool takes the pair into the seed. A pair whose dialogue is in the test set or in
    validation is dropped, and so is one that is there already, whatever its label.

    Args:
        splits: rows of the store as they were.
        rows: (K,) rows that arrived.
        pair_id: (N,) int64 of all rows.
        dialogue_id: (N,) int64 of all rows, joined over old and new ones.
        labels: (N,) int8 labels of all rows.
        between: counts what came in and what was dropped.
    """
    is_leak = np.isin(dialogue_id[rows], dialogue_id[np.concatenate([splits.test, splits.val])])
    is_contradiction = ~is_leak & (labels[rows] == CONTRADICTION)
    rows = rows[~is_leak & ~is_contradiction]
    has_label = labels[rows] > UNLABELLED
    in_seed, in_pool = (np.isin(pair_id[rows], pair_id[old]) for old in (splits.seed, splits.pool))
    to_seed, to_pool = rows[has_label & ~in_seed], rows[~has_label & ~in_seed & ~in_pool]
    moved = np.isin(pair_id[splits.pool], pair_id[to_seed])
    between["arrived_leak"] += int(is_leak.sum())
    between["arrived_contradiction"] += int(is_contradiction.sum())
    between["arrived_repeat"] += len(rows) - len(to_seed) - len(to_pool)
    between["arrived_seed"] += len(to_seed)
    between["arrived_moved"] += int(moved.sum())
    between["arrived_pool"] += len(to_pool)
    return replace(
        splits,
        seed=_by_id(np.concatenate([splits.seed, to_seed]), pair_id),
        pool=_by_id(np.concatenate([splits.pool[~moved], to_pool]), pair_id),
    )


def _by_id(rows: np.ndarray, pair_id: np.ndarray) -> np.ndarray:
    return rows[np.argsort(pair_id[rows])]
