"""Which pair goes where: splits by dialogue, and one stated policy for every duplicate, contradiction and leak.

Pairs that arrive after the splits were made join them; what was split before stays where it is.

Nothing here reads a label of the pool. The splits know only *whether* a row of `path` has a label; the labels
themselves are looked at afterwards, in the seed, validation and test pairs, for contradictions.
"""

import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np

from ser_lightning.data.formats import DROPS
from ser_lightning.data.labels import TIE
from ser_lightning.data.store import CONTRADICTION, ROLES, UNLABELLED, Counts
from ser_lightning.datamodules.annotators import Agreement
from ser_lightning.evaluation.sets import MIN_PROMPTS

READ_COLUMNS = (*ROLES, "new_data_path")
_READ_LINES: dict[str, str] = {
    "rows": "rows read",
    **{str(why): f"dropped: {text}" for why, text in DROPS.items()},
    "too_long": "dropped: a response longer than max_length",
    "duplicate": "dropped: the same pair again",
    "vote": "another annotator's vote on the same pair",
    "cut": "kept, oldest part of the prompt cut",
}
_SPLIT_LINES = {
    "test_unlabelled": "dropped: row of test_path without a label",
    "leak_path": "dropped from path: dialogue is in the test set",
    "leak_pool": "dropped from pool_path: dialogue is in the test set",
    "pool_repeats": "dropped from the pool: pair is in the seed, or twice in the pool",
    "shared_dialogue": "kept in the pool, dialogue is in the seed too",
    "contradiction_seed": "dropped from the seed: labels contradict each other",
    "contradiction_val": "dropped from validation: labels contradict each other",
    "contradiction_test": "dropped from the test set: labels contradict each other",
    "tie_seed": "ties out of the seed: trained on with target 0.5, not measured",
    "tie_val": "dropped from validation: the label is a tie",
    "tie_test": "dropped from the test set: the label is a tie",
    "arrived_seed": "from new_data_path into the seed",
    "arrived_tie": "of them, ties: trained on with target 0.5, not measured",
    "arrived_moved": "of them, pairs that were in the pool",
    "arrived_pool": "from new_data_path into the pool",
    "arrived_leak": "dropped from new_data_path: dialogue is in the test set or in validation",
    "arrived_repeat": "dropped from new_data_path: pair is there already",
    "arrived_contradiction": "dropped from new_data_path: labels contradict each other",
}


@dataclass(frozen=True)
class Splits:
    """Rows of the store, each array sorted by pair id, so that no file order shows.

    Attributes:
        seed: (S,) labelled pairs that training sees.
        val: (V,) labelled pairs taken out of the seed.
        pool: (P,) pairs without a visible label.
        test: (T,) labelled pairs for the final test.
        ties: (K,) pairs that training sees as well, with the target 0.5; nothing is measured on them.
    """

    seed: np.ndarray
    val: np.ndarray
    pool: np.ndarray
    test: np.ndarray
    ties: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass
class DataReport:
    """What was read, dropped, and kept where.

    Attributes:
        read: counts for each of `READ_COLUMNS`: rows and, of them, the dropped and the cut ones.
        between: counts of what the splits dropped or kept in spite of a doubt.
        splits: for each split (pairs, prompts, human labels); prompts that continue one another count once.
        annotators: how far those of the seed agree; None where none of its pairs has two votes.
    """

    read: Counts
    between: Counter[str] = field(default_factory=Counter)
    splits: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    annotators: Agreement | None = None

    def table(self) -> str:
        """The report as text; lines that count nothing are left out."""
        roles = [role for role in READ_COLUMNS if self.read[role]["rows"]]
        lines = [f"{'':62}" + "".join(f"{role:>11}" for role in roles)]
        for name, text in _READ_LINES.items():
            if any(self.read[role][name] for role in roles):
                lines.append(f"{text:62}" + "".join(f"{self.read[role][name]:>11}" for role in roles))
        lines += [f"{text:62}{self.between[name]:>11}" for name, text in _SPLIT_LINES.items() if self.between[name]]
        lines.append(f"{'split':32}{'pairs':>10}{'prompts':>10}{'labels':>10}{'':4}use of the labels")
        uses = {"seed": "training", "val": "validation", "pool": "only counted, at the end of rounds"}
        uses["test"] = "the final test"
        for name, numbers in self.splits.items():
            lines.append(f"{name:32}" + "".join(f"{number:>10}" for number in numbers) + f"{'':4}{uses[name]}")
        return "\n".join([*lines, *([self.annotators.line()] if self.annotators else [])])

    def few_prompts(self) -> list[str]:
        """A line for each split with labels that has many pairs of few prompts, and tells less than it seems to."""
        return [
            f"data: {name} has {pairs:,} pairs of only {prompts} prompts, and tells little more than so few; give "
            f"pairs of {MIN_PROMPTS} prompts or more"
            for name, (pairs, prompts, labels) in self.splits.items()
            if labels and name != "pool" and prompts < MIN_PROMPTS and pairs > 1.5 * prompts
        ]


def take_dialogues(dialogue_id: np.ndarray, fraction: float, seed: int, purpose: str) -> np.ndarray:
    """Choose whole dialogues until they hold a share of the pairs.

    Args:
        dialogue_id: (N,) int64 dialogue of each pair.
        fraction: share of the N pairs to hit as closely as whole dialogues can.

    Returns:
        (N,) bool, True where the pair's dialogue was chosen. No order of the pairs matters.
    """
    dialogues, group, sizes = np.unique(dialogue_id, return_inverse=True, return_counts=True)
    order = np.argsort([_keyed_hash(dialogue, seed, purpose) for dialogue in dialogues.tolist()])
    num_taken = np.concatenate([[0], sizes[order].cumsum()])
    num_dialogues = int(np.abs(num_taken - fraction * len(dialogue_id)).argmin())
    is_chosen = np.zeros(len(dialogues), dtype=bool)
    is_chosen[order[:num_dialogues]] = True
    return is_chosen[group]


def assign_folds(
    dialogue_id: np.ndarray,
    num_folds: int,
    seed: int,
    earlier: tuple[np.ndarray, np.ndarray] = (np.empty(0, np.int64), np.empty(0, np.int64)),
) -> np.ndarray:
    """Deal whole dialogues to folds of nearly equal size.

    Args:
        dialogue_id: (N,) int64 dialogue of each pair.
        num_folds: K, at most the number of dialogues.
        earlier: dialogues and folds of M pairs that are dealt already: they stay, and pairs of theirs join them.

    Returns:
        (N,) int64 fold of each pair.
    """
    dialogues, group, sizes = np.unique(dialogue_id, return_inverse=True, return_counts=True)
    earlier_dialogue, earlier_fold = (array.tolist() for array in earlier)
    # Where an arrival has joined two dialogues of different folds, the lower fold counts.
    known = dict(sorted(zip(earlier_dialogue, earlier_fold, strict=True), reverse=True))
    fold_size = np.bincount(earlier_fold, minlength=num_folds)
    names = dialogues.tolist()
    keys = [
        (name not in known, -size, _keyed_hash(name, seed, "fold")) for name, size in zip(names, sizes, strict=True)
    ]
    fold_of_dialogue = np.zeros(len(dialogues), dtype=np.int64)
    for i in sorted(range(len(dialogues)), key=keys.__getitem__):
        fold = known.get(names[i], int(fold_size.argmin()))
        fold_of_dialogue[i] = fold
        fold_size[fold] += sizes[i]
    return fold_of_dialogue[group]


def _keyed_hash(dialogue_id: int, seed: int, purpose: str) -> int:
    digest = hashlib.blake2b(f"{purpose}:{seed}:{dialogue_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class SplitPolicy:
    """How much goes where.

    Attributes:
        seed_fraction: share of the labelled pairs outside the test set that keep their label, without a pool given.
        test_fraction: share of the labelled pairs for the test set, without a test file.
        val_fraction: share of the seed for validation.
        split_seed: another seed, another choice of dialogues.
    """

    seed_fraction: float
    test_fraction: float
    val_fraction: float
    split_seed: int

    def problems(self) -> list[str]:
        """Shares that are none, a line each."""
        found = []
        if not 0 < self.seed_fraction <= 1:
            found.append(f"seed_fraction: got {self.seed_fraction}; use a share above 0 and up to 1")
        for name in ("test_fraction", "val_fraction"):
            if not 0 <= (value := getattr(self, name)) < 1:
                found.append(f"{name}: got {value}; use a share from 0 up to, but not, 1")
        return found


def split_pairs(
    pair_id: np.ndarray,
    dialogue_id: np.ndarray,
    role: np.ndarray,
    has_label: np.ndarray,
    given: Collection[str],
    policy: SplitPolicy,
    between: Counter[str],
) -> Splits:
    """Seed, validation, pool and test, with no dialogue of the test set anywhere else.

    Args:
        pair_id: (N,) int64.
        dialogue_id: (N,) int64.
        role: (N,) int8, position in `ROLES`.
        has_label: (N,) bool; not read where the role is `pool_path`.
        given: the `ROLES` that the user gave, even if none of their rows was usable.
        policy: shares and seed.
    """
    is_path, is_pool, is_test_file = (role == ROLES.index(name) for name in ROLES)
    labelled = is_path & has_label
    if "test_path" in given:
        test = is_test_file & has_label
        between["test_unlabelled"] += int((is_test_file & ~has_label).sum())
    else:
        test = _choose(labelled, dialogue_id, policy.test_fraction, policy, "test")
    leaks = ~test & ~is_test_file & np.isin(dialogue_id, dialogue_id[test])
    between["leak_path"] += int((leaks & is_path).sum())
    between["leak_pool"] += int((leaks & is_pool).sum())

    labelled &= ~test & ~leaks
    unlabelled = ((is_path & ~has_label) | is_pool) & ~leaks
    if "pool_path" in given or (is_path & ~has_label).any():
        seed, pool = labelled, unlabelled & ~np.isin(pair_id, pair_id[labelled])
    else:
        seed = _choose(labelled, dialogue_id, policy.seed_fraction, policy, "seed")
        pool = labelled & ~seed
    pool_rows = _sorted_rows(pool, pair_id)
    between["pool_repeats"] += int((unlabelled & ~pool).sum()) + int(pool.sum()) - len(pool_rows)
    between["shared_dialogue"] += int(np.isin(dialogue_id[pool_rows], dialogue_id[seed]).sum())
    val = _choose(seed, dialogue_id, policy.val_fraction, policy, "validation")
    return Splits(
        seed=_sorted_rows(seed & ~val, pair_id),
        val=_sorted_rows(val, pair_id),
        pool=pool_rows,
        test=_sorted_rows(test, pair_id),
    )


def _choose(
    mask: np.ndarray, dialogue_id: np.ndarray, fraction: float, policy: SplitPolicy, purpose: str
) -> np.ndarray:
    """A share of the rows of the mask, as a mask."""
    chosen = np.zeros(len(mask), dtype=bool)
    chosen[mask] = take_dialogues(dialogue_id[mask], fraction, policy.split_seed, purpose)
    return chosen


def _sorted_rows(mask: np.ndarray, pair_id: np.ndarray) -> np.ndarray:
    """Rows of the mask in the order of their pair id, each pair once."""
    rows = np.flatnonzero(mask)
    _, first = np.unique(pair_id[rows], return_index=True)
    return rows[first]


def set_undecided_aside(splits: Splits, labels: np.ndarray, between: Counter[str]) -> Splits:
    """Take out the seed, validation and test pairs that were labelled both ways, or a tie; the pool is left as it is.

    Args:
        splits: rows of the store, before any tie is set aside.
        labels: (N,) float32 labels of all rows.

    Returns:
        The splits, with the ties of the seed as `ties`.
    """
    kept = {}
    for name in ("seed", "val", "test"):
        rows: np.ndarray = getattr(splits, name)
        is_contradiction, is_tie = labels[rows] == CONTRADICTION, labels[rows] == TIE
        between[f"contradiction_{name}"] += int(is_contradiction.sum())
        between[f"tie_{name}"] += int(is_tie.sum())
        kept[name] = rows[~is_contradiction & ~is_tie]
    return Splits(pool=splits.pool, ties=splits.seed[labels[splits.seed] == TIE], **kept)


def add_arrival(
    splits: Splits,
    rows: np.ndarray,
    pair_id: np.ndarray,
    dialogue_id: np.ndarray,
    labels: np.ndarray,
    between: Counter[str],
) -> Splits:
    """The splits with newly arrived rows: labelled ones join the seed or, a tie, the ties; the others join the pool.

    A label for a pair of the pool takes the pair into the seed. A pair whose dialogue is in the test set or in
    validation is dropped, and so is one that is there already, whatever its label.

    Args:
        splits: rows of the store as they were.
        rows: (K,) rows that arrived.
        pair_id: (N,) int64 of all rows.
        dialogue_id: (N,) int64 of all rows, joined over old and new ones.
        labels: (N,) float32 labels of all rows.
    """
    is_leak = np.isin(dialogue_id[rows], dialogue_id[np.concatenate([splits.test, splits.val])])
    is_contradiction = ~is_leak & (labels[rows] == CONTRADICTION)
    rows = rows[~is_leak & ~is_contradiction]
    has_label = labels[rows] > UNLABELLED
    known = np.concatenate([splits.seed, splits.ties])
    in_seed, in_pool = (np.isin(pair_id[rows], pair_id[old]) for old in (known, splits.pool))
    to_seed, to_pool = rows[has_label & ~in_seed], rows[~has_label & ~in_seed & ~in_pool]
    moved = np.isin(pair_id[splits.pool], pair_id[to_seed])
    between["arrived_leak"] += int(is_leak.sum())
    between["arrived_contradiction"] += int(is_contradiction.sum())
    between["arrived_repeat"] += len(rows) - len(to_seed) - len(to_pool)
    is_tie = labels[to_seed] == TIE
    between["arrived_seed"] += len(to_seed)
    between["arrived_tie"] += int(is_tie.sum())
    between["arrived_moved"] += int(moved.sum())
    between["arrived_pool"] += len(to_pool)
    return replace(
        splits,
        seed=_by_id(np.concatenate([splits.seed, to_seed[~is_tie]]), pair_id),
        ties=_by_id(np.concatenate([splits.ties, to_seed[is_tie]]), pair_id),
        pool=_by_id(np.concatenate([splits.pool[~moved], to_pool]), pair_id),
    )


def is_decided(labels: np.ndarray) -> np.ndarray:
    """(N,) bool, whether a label names the better response: it is there, and neither a contradiction nor a tie."""
    return (labels == 0) | (labels == 1)


def _by_id(rows: np.ndarray, pair_id: np.ndarray) -> np.ndarray:
    return rows[np.argsort(pair_id[rows])]


def count_splits(splits: Splits, dialogue_id: np.ndarray, labels: np.ndarray) -> dict[str, tuple[int, int, int]]:
    """Pairs, dialogues and human labels of each split; a tie is no label to count right answers with."""
    rows = {name: getattr(splits, name) for name in ("seed", "val", "pool", "test")}
    return {
        name: (len(r), len(np.unique(dialogue_id[r])), int(is_decided(labels[r]).sum())) for name, r in rows.items()
    }
