"""The tables of pairs in a run: what is written is read, and what is damaged is named."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ser_lightning.errors import UserError
from ser_lightning.evolution.selection import SelectionResult
from ser_lightning.records import PairScores
from ser_lightning.runs.files import round_files
from ser_lightning.runs.pair_tables import read_audit, read_test_scores, write_audit, write_test_scores


def test_an_audit_has_a_reason_for_every_pair(tmp_path):
    ids, reward = torch.arange(3), torch.tensor([2.0, 0.5, -0.1])
    pool = PairScores(ids, reward, torch.zeros(3), ids, ids)
    result = SelectionResult(reward.sigmoid(), torch.tensor([True, False, False]), 1, False, "")
    path = round_files(tmp_path, 0).audit
    assert read_audit(path) is None
    path.parent.mkdir(parents=True)
    write_audit(path, pool, result)
    audit = read_audit(path)
    assert audit["label"].tolist() == [1, 1, 0]
    assert audit["kept"].tolist() == [True, False, False]
    assert audit["reason"].tolist() == ["kept", "not sure enough", "not sure enough"]


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_a_probability_of_an_audit_lies_between_0_and_1(tmp_path, probability):
    columns = {"pair_id": [1], "reward_a": [0.0], "reward_b": [0.0], "probability": [probability], "label": [1]}
    pq.write_table(pa.table({**columns, "kept": [True], "reason": ["kept"]}), tmp_path / "audit.parquet")
    with pytest.raises(UserError, match=r"cannot read .*audit.parquet \(a probability is none\)"):
        read_audit(tmp_path / "audit.parquet")


def test_rewards_of_the_test_pairs_come_back_as_they_were(tmp_path):
    ids = torch.tensor([3, 1, 2])
    path = round_files(tmp_path, 0).test_scores
    assert read_test_scores(path) is None
    path.parent.mkdir(parents=True)
    write_test_scores(path, PairScores(ids, torch.tensor([0.5, -1.0, 2.0]), torch.zeros(3), ids, ids))
    found = read_test_scores(path)
    assert found["pair_id"].tolist() == [3, 1, 2] and found["reward_a"].tolist() == [0.5, -1.0, 2.0]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"pair_id": [1, 1], "reward_a": [0.0, 1.0], "reward_b": [0.0, 1.0]}, "a pair stands in it twice"),
        ({"pair_id": [1, 2], "reward_a": [0.0, np.nan], "reward_b": [0.0, 1.0]}, "reward_a has NaN or infinity in it"),
        ({"pair_id": [1, 2], "reward_a": [0.0, 1.0]}, "reward_b is not what it is in such a table"),
    ],
)
def test_rewards_that_are_none_are_named(tmp_path, columns, problem):
    pq.write_table(pa.table(columns), tmp_path / "test.parquet")
    with pytest.raises(UserError, match=problem):
        read_test_scores(tmp_path / "test.parquet")
