import numpy as np
import pytest
import torch

from ser_lightning.layouts import PairRow, collate_pairs, cut_by_tokens


def test_batch_by_hand():
    rows = [PairRow(11, [5, 6, 7], [5, 8], 1.0, 0.5), PairRow(12, np.array([9]), np.array([9, 4, 4, 4]), 0.0)]
    batch = collate_pairs(rows, pad_token_id=0, num_step_pairs=6)
    assert batch.input_ids.tolist() == [[5, 6, 7, 0], [9, 0, 0, 0], [5, 8, 0, 0], [9, 4, 4, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.pair_id.tolist() == [11, 12]
    assert batch.target.tolist() == [1.0, 0.0]
    assert batch.weight.tolist() == [0.5, 1.0]
    assert batch.num_step_pairs == 6
    assert batch.input_ids.dtype == batch.attention_mask.dtype == batch.pair_id.dtype == torch.int64
    assert batch.target.dtype == batch.weight.dtype == torch.float32


def test_pad_id_shows_only_where_the_mask_is_0():
    rows = [PairRow(1, [5, 6, 7], [5])]
    batches = [collate_pairs(rows, pad_token_id=pad) for pad in (0, 3)]
    assert batches[1].input_ids.tolist() == [[5, 6, 7], [5, 3, 3]]
    assert torch.equal(*(batch.input_ids * batch.attention_mask for batch in batches))
    assert batches[0].num_step_pairs == 1
    assert batches[0].target.isnan().all()


def test_cut_by_hand():
    # 2 rows a pair: 10 -> 20 tokens, 5 and 4 -> 2 pairs of 5 are 20, 2 and 1 -> 8
    assert cut_by_tokens([1, 10, 4, 5, 2], budget=20) == [[1], [3, 2], [4, 0]]
    assert cut_by_tokens([7, 7, 7, 7], budget=28) == [[0, 1], [2, 3]]
    assert cut_by_tokens([], budget=20) == []


def test_a_single_pair_may_exceed_the_budget():
    assert cut_by_tokens([50, 2, 60], budget=10) == [[2], [0], [1]]


@pytest.mark.parametrize("budget", [1, 64, 500, 10_000])
def test_every_pair_once_within_the_budget_and_no_batch_could_be_joined_with_the_next(budget):
    lengths = np.random.default_rng(0).integers(1, 100, size=200)
    batches = cut_by_tokens(lengths, budget)
    assert sorted(position for batch in batches for position in batch) == list(range(200))
    for batch, after in zip(batches, batches[1:] + [[]], strict=True):
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or 2 * len(batch) * longest <= budget
        if after:
            assert 2 * (len(batch) + 1) * longest > budget
            assert longest >= max(lengths[i] for i in after)
