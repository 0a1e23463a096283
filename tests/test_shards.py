from pathlib import Path

import pyarrow
import pyarrow.parquet as pq
import pytest
import torch

from ser_lightning import selection
from ser_lightning.calibration import prob_a_wins
from ser_lightning.errors import UserError
from ser_lightning.records import PairScores
from ser_lightning.selection import CalibratedRule, Evidence
from ser_lightning.shards import accept_shard, count_confidences, most_informative_target, no_counts, target_over_shards


def counted(*parts):
    counts = no_counts()
    for part in parts:
        count_confidences(part, counts)
    return counts


def confidences(seed, num_pairs, spread=2.0):
    torch.manual_seed(seed)
    prob_a = prob_a_wins(torch.randn(num_pairs) * spread, 1.0)
    return torch.maximum(prob_a, 1 - prob_a)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.1, 2.0, 50.0])
def test_counting_gives_the_target_that_sorting_gives(seed, spread):
    found = confidences(seed, 3000, spread)
    assert most_informative_target(counted(found)) == selection.most_informative_target(found)


@pytest.mark.parametrize("found", [[], [0.5], [1.0], [0.5, 0.5, 1.0, 1.0], [0.75] * 5 + [0.7500001]])
def test_ends_ties_and_nothing(found):
    found = torch.tensor(found, dtype=torch.float32)
    assert most_informative_target(counted(found)) == selection.most_informative_target(found)


def test_counts_add_up_over_shards():
    found = confidences(0, 1000)
    assert torch.equal(counted(*found.split(137)), counted(found))
    assert int(counted(found).sum()) == 1000


@pytest.mark.parametrize("bad", [float("nan"), 0.49, 1.01, float("inf"), -0.7])
def test_what_is_no_confidence_is_refused(bad):
    with pytest.raises(UserError, match="outside of 0.5 to 1"):
        counted(torch.tensor([0.6, bad]))


def test_shards_accept_what_the_rule_keeps_of_the_whole_pool():
    torch.manual_seed(1)
    size = 500
    scores = PairScores(torch.randperm(size), *torch.randn(2, size) * 1.5, *torch.ones(2, size, dtype=torch.int64))
    seed = PairScores(torch.arange(60), *torch.randn(2, 60), *torch.ones(2, 60, dtype=torch.int64))
    target = (torch.rand(60) < torch.sigmoid(seed.margin)).float()
    evidence = Evidence(seed, target)
    verdict = CalibratedRule().select(scores, evidence)
    temperature, _ = evidence.scale()
    files = []
    for number, rows in enumerate(torch.arange(size).split(200)):
        part = scores[rows]
        columns = {name: getattr(part, name).numpy() for name in ("pair_id", "reward_a", "reward_b")}
        files.append(Path(f"scores-{number}.parquet"))
        pq.write_table(pyarrow.table(columns), files[-1])
    cut = target_over_shards(files, temperature)
    counts = [accept_shard(file, Path(f"accepted-{file}"), temperature, cut) for file in files]
    found = pyarrow.concat_tables([pq.read_table(f"accepted-{file}") for file in files]).to_pydict()
    assert 0 < sum(counts) == int(verdict.keep.sum()) == len(found["pair_id"]) < size
    assert found["pair_id"] == scores.pair_id[verdict.keep].tolist()
    assert found["label"] == verdict.label[verdict.keep].tolist()
    assert found["confidence"] == pytest.approx(
        verdict.confidence[verdict.keep].tolist(), abs=1e-6
    )  # vectorised in other places


def test_a_shard_without_pairs_is_accepted_as_one():
    pq.write_table(
        pyarrow.table(
            {"pair_id": pyarrow.array([], pyarrow.int64())}
            | {n: pyarrow.array([], pyarrow.float32()) for n in ("reward_a", "reward_b")}
        ),
        "s.pq",
    )
    assert target_over_shards([Path("s.pq")], 1.0) == 0.5
    assert accept_shard(Path("s.pq"), Path("a.pq"), 1.0, 0.5) == 0
    assert pq.read_table("a.pq").num_rows == 0
