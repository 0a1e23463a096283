"""Whether a seed is large enough to learn from, and what gives it more labels where it is not."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ser_lightning.datamodules.splitting import DataReport

MIN_SEED_PAIRS = 8
"""With fewer labels a temperature, a target and the choice of a round are noise."""


def seed_problems(
    labels: np.ndarray, report: DataReport, paths: Mapping[str, Sequence[str]], no_label_hint: Callable[[], str]
) -> list[str]:
    """What makes a seed useless to learn from and to calibrate on.

    Args:
        labels: (S,) labels of the seed.
        report: what became of all rows.
        paths: files by role.
        no_label_hint: what to add where no pair has a label.
    """
    if len(labels) < MIN_SEED_PAIRS:
        fix = _how_to_get_labels(report, paths, no_label_hint)
        return [f"seed: got {len(labels)} labelled pairs to train on, need at least {MIN_SEED_PAIRS}; {fix}"]
    if len(np.unique(labels)) == 1:  # a and b are ordered by a hash
        return [
            f"seed: got {len(labels)} pairs in all of which response {'a' if labels[0] else 'b'} is better, by chance "
            f"1 time in {2 ** (len(labels) - 1):,}; check the labels, or give more pairs"
        ]
    return []


def _how_to_get_labels(report: DataReport, paths: Mapping[str, Sequence[str]], no_label_hint: Callable[[], str]) -> str:
    """The setting to which most labels are lost, or where to get some."""
    splits, has_test_file = report.splits, bool(paths.get("test_path"))
    labels = {name: count for name, (_, _, count) in splits.items()}
    of_training = [splits[name] for name in ("seed", "val", "pool")]
    too_long, leaked = report.read["path"]["too_long"], report.between["leak_path"]
    if too_long > sum(pairs for pairs, _, _ in of_training):
        return f"raise data.max_length, for which {too_long:,} pairs of data.path are too long"
    if not any(labels.values()):
        return f"label some of the pairs (python -m ser_lightning label PAIRS){no_label_hint()}"
    if has_test_file and leaked > sum(count for _, _, count in of_training):
        return f"give a data.test_path of other dialogues: it has those of {leaked:,} pairs of data.path"
    fixes = ["lower data.val_fraction"] if labels["val"] else []
    if labels["pool"] and not paths.get("pool_path"):  # else all labels are the seed's already
        fixes.insert(0, "raise data.seed_fraction")
    elif labels["test"] and not has_test_file:
        fixes.append("lower data.test_fraction")
    return f"{', '.join(fixes)}{' or ' if fixes else ''}give more pairs with a label"
