import numpy as np
import pytest

from ser_lightning.packing import cut_by_tokens, group_equal, num_shared_tokens, pack_by_tokens, share_by_tokens


def test_cut_by_hand():
    # 2 rows a pair: 10 -> 20 tokens, 5 and 4 -> 2 pairs of 5 are 20, 2 and 1 -> 8
    assert cut_by_tokens([1, 10, 4, 5, 2], budget=20) == [[1], [3, 2], [4, 0]]
    assert cut_by_tokens([7, 7, 7, 7], budget=28) == [[0, 1], [2, 3]]
    assert cut_by_tokens([], budget=20) == []


def test_pack_by_hand():
    # 9 -> room 1; 6 -> room 4; 4 fits beside 6 exactly; 3 opens a row; 1 goes to the fullest row with room, that of 9
    assert pack_by_tokens([4, 1, 9, 6, 3], budget=10) == [[2, 1], [3, 0], [4]]
    assert pack_by_tokens([], budget=10) == []


@pytest.mark.parametrize("cut", [cut_by_tokens, pack_by_tokens])
def test_a_single_item_may_exceed_the_budget(cut):
    assert cut([50, 2, 60], budget=10) == [[2], [0], [1]]


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


@pytest.mark.parametrize("budget", [1, 64, 500, 10_000])
def test_rows_hold_every_item_once_within_the_budget_and_no_two_fit_into_one(budget):
    lengths = np.random.default_rng(1).integers(1, 100, size=200)
    rows = pack_by_tokens(lengths, budget)
    assert sorted(position for row in rows for position in row) == list(range(200))
    totals = [sum(int(lengths[i]) for i in row) for row in rows]
    assert all(total <= budget or len(row) == 1 for total, row in zip(totals, rows, strict=True))
    smallest = sorted(totals)[:2]
    assert len(rows) == 1 or sum(smallest) > budget
    assert lengths[rows[0][0]] == lengths.max()


def test_large_pools_leave_hardly_any_room():
    lengths = np.random.default_rng(2).lognormal(5.3, 0.6, size=5000).astype(int) + 1
    rows = pack_by_tokens(lengths, 8192)
    assert lengths.sum() / (8192 * len(rows)) > 0.98


def test_shares_by_hand():
    assert share_by_tokens([5, 9, 4, 3], 2) == [[1, 3], [0, 2]]
    assert share_by_tokens([5], 3) == [[0], [], []]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_ranks_get_every_item_once_and_like_many_tokens(num_ranks):
    lengths = np.random.default_rng(3).integers(1, 100, size=64)
    shares = share_by_tokens(lengths, num_ranks)
    assert sorted(i for share in shares for i in share) == list(range(64))
    tokens = [int(lengths[share].sum()) for share in shares]
    assert max(tokens) - min(tokens) <= lengths.max()


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        (([1, 2, 3], [1, 2, 4]), 2),
        (([1, 2], [1, 2, 4]), 2),  # one begins with the other
        (([1, 2, 4], [1, 2]), 2),
        (([5, 2], [1, 2]), 0),
        (([1, 2, 3], [1, 2, 3]), 3),
        (([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 9]), 2),
        (([7, 8],), 2),
        (([], [1]), 0),
    ],
)
def test_shared_beginning_by_hand(sequences, expected):
    assert num_shared_tokens([np.array(ids, dtype=np.int64) for ids in sequences]) == expected


def test_equal_keys_come_together_in_the_order_of_their_first():
    assert group_equal(["x", "y", "x", "z", "y"]) == [[0, 2], [1, 4], [3]]
