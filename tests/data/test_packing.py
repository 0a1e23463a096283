import numpy as np
import pytest

from ser_lightning.data.packing import cut_by_tokens, group_equal, num_shared_tokens, pack_by_tokens, share_by_tokens


def test_cut_by_hand():
    # 2 rows a pair: 10 -> 20 tokens, 5 and 4 -> 2 pairs of 5 are 20, 2 and 1 -> 8
    assert cut_by_tokens([1, 10, 4, 5, 2], budget=20) == [[1], [3, 2], [4, 0]]
    assert cut_by_tokens([7, 7, 7, 7], budget=28) == [[0, 1], [2, 3]]
    assert cut_by_tokens([], budget=20) == []


def test_pack_by_hand():
    # Rows of 9: 9 | 6, 3 | 4, 1
    assert pack_by_tokens([4, 1, 9, 6, 3], budget=27) == [[[2], [3, 4], [0, 1]]]
    # Two rows at most: 4 has no room, 3 and then nothing has; 4 and 1 are a batch with one row of 4 and one of 1
    assert pack_by_tokens([4, 1, 9, 6, 3], budget=20) == [[[2], [3, 4]], [[0], [1]]]
    # One row of 10: 9, 1 | 6, 4 | 3
    assert pack_by_tokens([4, 1, 9, 6, 3], budget=10, is_one_row=True) == [[[2, 1]], [[3, 0]], [[4]]]
    assert pack_by_tokens([], budget=10) == []


def test_a_single_item_may_exceed_the_budget():
    assert cut_by_tokens([50, 2, 60], budget=10) == [[2], [0], [1]]
    assert pack_by_tokens([50, 2, 60], budget=10) == [[[2]], [[0]], [[1]]]
    assert pack_by_tokens([50, 2, 60], budget=10, is_one_row=True) == [[[2]], [[0]], [[1]]]


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


@pytest.mark.parametrize("is_one_row", [False, True])
@pytest.mark.parametrize("budget", [1, 64, 500, 10_000])
def test_batches_hold_every_item_once_within_the_budget(budget, is_one_row):
    lengths = np.random.default_rng(1).integers(1, 100, size=200)
    batches = pack_by_tokens(lengths, budget, is_one_row)
    assert sorted(position for rows in batches for row in rows for position in row) == list(range(200))
    for rows in batches:
        totals = [int(lengths[row].sum()) for row in rows]
        longest = max(lengths[position] for row in rows for position in row)
        assert max(totals) <= (max(budget, longest) if is_one_row else longest)
        assert len(rows) == 1 if is_one_row else len(rows) * longest <= budget or len(rows) == 1
    assert lengths[batches[0][0][0]] == lengths.max()


@pytest.mark.parametrize(("is_one_row", "least"), [(False, 0.97), (True, 0.98)])
def test_large_pools_leave_hardly_any_room(is_one_row, least):
    lengths = np.random.default_rng(2).lognormal(5.3, 0.6, size=5000).astype(int) + 1
    batches = pack_by_tokens(lengths, 8192, is_one_row)
    sizes = [8192 if is_one_row else len(rows) * max(lengths[row].sum() for row in rows) for rows in batches]
    assert lengths.sum() / sum(sizes) > least


@pytest.mark.parametrize("is_one_row", [False, True])
def test_a_batch_packed_again_by_itself_comes_into_the_same_rows(is_one_row):
    lengths = np.random.default_rng(4).integers(1, 100, size=300)
    for rows in pack_by_tokens(lengths, 400, is_one_row):
        members = [position for row in rows for position in row]
        budget = 400 if is_one_row else 10**9
        [again] = pack_by_tokens(lengths[members], budget, is_one_row)
        assert [[lengths[members[i]] for i in row] for row in again] == [[lengths[i] for i in row] for row in rows]


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
