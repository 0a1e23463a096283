"""Tables of a round with a line for each pair: what became of the pool, and the rewards of the test pairs."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ser_lightning.evolution.selection import SelectionResult
from ser_lightning.records import PairScores
from ser_lightning.runs.files import reading
from ser_lightning.utils.checksums import write_recorded

Audit = dict[str, np.ndarray]
"""Columns of such a table, (N,) each, in the order of `pair_id`."""
_REASONS = ("kept", "not sure enough")


def write_audit(path: Path, pool: PairScores, result: SelectionResult) -> None:
    """One line for every pool pair: its rewards, its label and whether it was kept.

    Args:
        pool: (N,) scores.
        result: (N,) the rule's result.
    """
    columns = {
        "pair_id": pool.pair_id.numpy(),
        "reward_a": pool.reward_a.numpy(),
        "reward_b": pool.reward_b.numpy(),
        "probability": result.prob_a.numpy(),
        "label": result.label.numpy(),
        "kept": result.keep.numpy(),
        "reason": np.where(result.keep.numpy(), *_REASONS),
    }
    write_recorded(path, lambda file: pq.write_table(pa.table(columns), file))


_SCORE_KINDS = {"pair_id": "i", "reward_a": "f", "reward_b": "f"}
_AUDIT_KINDS = {**_SCORE_KINDS, "probability": "f", "label": "i", "kept": "b", "reason": "O"}
"""Columns of an audit and numpy's letters for their kinds."""


def read_audit(path: Path) -> Audit | None:
    """The columns of an audit file; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    audit = _read_pairs(path, _AUDIT_KINDS)
    with reading(path, has_record=False):
        if audit is not None and ((audit["probability"] < 0) | (audit["probability"] > 1)).any():
            raise ValueError("a probability is none")
    return audit


def write_test_scores(path: Path, test: PairScores) -> None:
    """The rewards of the test pairs, without labels: what a paired comparison of rounds or runs needs.

    Args:
        test: (N,) scores.
    """
    columns = {name: getattr(test, name).numpy() for name in ("pair_id", "reward_a", "reward_b")}
    write_recorded(path, lambda file: pq.write_table(pa.table(columns), file))


def read_test_scores(path: Path) -> Audit | None:
    """`pair_id`, `reward_a` and `reward_b` of the test pairs; None where there is no such file.

    Raises:
        UserError: it is damaged.
    """
    return _read_pairs(path, _SCORE_KINDS)


def _read_pairs(path: Path, kinds: dict[str, str]) -> Audit | None:
    """The columns of a table of pairs, which must be of these kinds; None where there is no file."""
    if not path.is_file():
        return None
    with reading(path):
        table = pq.ParquetFile(path).read()
        found: Audit = {name: table[name].to_numpy() for name in table.column_names}
        for name, kind in kinds.items():
            if name not in found or found[name].dtype.kind != kind:
                raise ValueError(f"{name} is not what it is in such a table")
            if kind == "f" and not np.isfinite(found[name]).all():
                raise ValueError(f"{name} has NaN or infinity in it")
        if len(np.unique(found["pair_id"])) < len(found["pair_id"]):
            raise ValueError("a pair stands in it twice")
    return found
