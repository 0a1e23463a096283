from dataclasses import replace

import numpy as np
import pytest
import torch

from ser_lightning.data.layouts import Layout, pack_sequences
from tests.pair_batches import PairRow, collate_pairs


def test_batch_by_hand():
    rows = [PairRow(11, [5, 6, 7], [5, 8], 1.0, 0.5), PairRow(12, np.array([9]), np.array([9, 4, 4, 4]), 0.0)]
    batch = collate_pairs(rows, pad_token_id=0, num_step_pairs=6)
    assert batch.inputs.input_ids.tolist() == [[5, 6, 7, 0], [9, 0, 0, 0], [5, 8, 0, 0], [9, 4, 4, 4]]
    assert batch.inputs.attention_mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.pair_id.tolist() == [11, 12]
    assert batch.target.tolist() == [1.0, 0.0]
    assert batch.weight.tolist() == [0.5, 1.0]
    assert batch.num_step_pairs == 6
    assert batch.inputs.input_ids.dtype == batch.inputs.attention_mask.dtype == batch.pair_id.dtype == torch.int64
    assert batch.target.dtype == batch.weight.dtype == torch.float32


def test_pad_id_shows_only_where_the_mask_is_0():
    rows = [PairRow(1, [5, 6, 7], [5])]
    batches = [collate_pairs(rows, pad_token_id=pad) for pad in (0, 3)]
    assert batches[1].inputs.input_ids.tolist() == [[5, 6, 7], [5, 3, 3]]
    assert torch.equal(*(batch.inputs.input_ids * batch.inputs.attention_mask for batch in batches))
    assert batches[0].num_step_pairs == 1
    assert batches[0].target.isnan().all()


def test_packed_row_by_hand():
    # Two sequences share 5 6; one is all of the other's beginning; one has a key of its own.
    packed = pack_sequences([[5, 6, 7], [3, 4], [5, 6, 8, 9], [3, 4, 4], [2]], [[[0, 2]], [[1, 3], [4]]], 1)
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9], [3, 4, 4, 2, 1]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 2, 3], [0, 1, 2, 0, 0]]
    assert packed.group_start.tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 3, 4]]
    assert packed.shared_end.tolist() == [[2, 2, 2, 2, 2], [2, 2, 2, 4, 5]]
    assert packed.part_start.tolist() == [[0, 0, 2, 3, 3], [0, 0, 2, 3, 4]]
    assert packed.num_tokens.tolist() == [3, 2, 4, 3, 1]
    assert packed.num_shared.tolist() == [2, 2, 2, 2, 1]
    assert packed.shared_start.tolist() == [0, 5, 0, 5, 8]
    last = packed.places(packed.num_tokens[:, None] - 1).squeeze(1)
    assert last.tolist() == [2, 6, 4, 7, 8]


def test_places_lead_back_to_every_token():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 9, size=n).tolist() for n in (0, 5, 30)]
    sequences = [prompt + rng.integers(3, 9, size=n).tolist() for prompt in prompts for n in (1, 7, 4)]
    packed = pack_sequences(sequences, [[[6, 7, 8]], [[3, 4, 5], [0, 1, 2]]])
    for i, ids in enumerate(sequences):
        places = packed.places(torch.arange(len(ids)).expand(9, -1))[i]
        assert packed.input_ids.flatten()[places].tolist() == ids
        assert packed.position_ids.flatten()[places].tolist() == list(range(len(ids)))


def test_pairs_share_their_prompt_and_stay_in_the_order_of_padded_rows():
    rows = [PairRow(11, [5, 6, 7], [5, 8], 1.0, 0.5), PairRow(12, np.array([9]), np.array([9, 4, 4, 4]), 0.0)]
    packed, padded = (collate_pairs(rows, 0, 6, Layout(shares)) for shares in (True, False))
    assert packed.inputs.input_ids.tolist() == [[5, 6, 7, 8], [9, 4, 4, 4]]
    assert packed.inputs.num_tokens.tolist() == padded.inputs.num_tokens.tolist() == [3, 1, 2, 4]
    for name in ("pair_id", "target", "weight"):
        assert torch.equal(getattr(packed, name), getattr(padded, name))


def test_rows_are_filled_up_to_a_multiple_with_tokens_of_nobody():
    layout = Layout(shares_prompts=True, row_multiple=8)
    inputs = layout.lay_out([[5, 6, 7], [5, 6, 8]], ["x", "x"], pad_token_id=1)
    assert inputs.input_ids.tolist() == [[5, 6, 7, 8, 1, 1, 1, 1]]
    assert inputs.part_start.tolist() == [[0, 0, 2, 3, 4, 4, 4, 4]]
    full = layout.lay_out([[5] * 8], ["x"], pad_token_id=1)
    assert full.input_ids.shape == (1, 8)


def test_packed_batches_count_shared_tokens_once():
    num_tokens, num_shared = np.array([[10, 12], [4, 4], [6, 9]]), np.array([8, 0, 5])  # 14, 8 and 10 tokens packed
    assert Layout(True).cut_pairs(num_tokens, num_shared, 28) == [[0, 2], [1]]
    assert Layout(True, is_one_row=True).cut_pairs(num_tokens, num_shared, 24) == [[0, 2], [1]]
    assert Layout(True, max_batch_tokens=14).cut_pairs(num_tokens, num_shared, 28) == [[0], [2], [1]]
    assert Layout().cut_pairs(num_tokens, num_shared, 24) == [[0], [2], [1]]


def test_sequences_of_one_key_stay_together():
    sequences = [[1, 2, 3], [7, 7, 7, 7], [1, 2, 4], [1, 2, 5]]  # 5 tokens packed, and 4
    assert Layout(True).cut_sequences(sequences, ["x", "y", "x", "x"], 5) == [[0, 2, 3], [1]]
    assert Layout(True).cut_sequences(sequences, ["x", "y", "x", "x"], 10) == [[0, 2, 3, 1]]
    assert Layout().cut_sequences(sequences, ["x", "y", "x", "x"], 6) == [[1], [0, 2], [3]]


@pytest.mark.parametrize("layout", [Layout(True), Layout(True, is_one_row=True, row_multiple=1)])
@pytest.mark.parametrize("budget", [40, 150, 1000])
def test_what_was_cut_within_the_budget_is_laid_out_within_it(layout, budget):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 9, size=n).tolist() for n in rng.integers(0, 30, size=20)]
    sequences = [prompt + rng.integers(3, 9, size=n).tolist() for prompt in prompts for n in rng.integers(1, 20, 2)]
    keys = [i // 2 for i in range(40)]
    for cut in layout.cut_sequences(sequences, keys, budget):
        inputs = layout.lay_out([sequences[i] for i in cut], [keys[i] for i in cut], 0)
        assert inputs.input_ids.numel() <= budget or len(cut) == 2
        if layout.is_one_row:
            assert len(inputs.input_ids) == 1


def test_every_part_of_a_batch_moves_with_it():
    batch = collate_pairs([PairRow(1, [5, 6, 7], [5, 8])], 0, layout=Layout(True)).to("meta")
    assert batch.inputs.position_ids.device.type == batch.inputs.own_start.device.type == "meta"
    assert batch.pair_id.device.type == "meta" and batch.num_step_pairs == 1


@pytest.mark.parametrize(
    "layout", [Layout(), Layout(True), Layout(True, None, True, 8)], ids=["padded", "packed", "row"]
)
def test_a_response_is_what_its_start_says_whatever_ids_it_has(layout):
    """Headers (7, 8) in prompts and responses count for nothing; an empty response is read at what is before it."""
    sequences = [[5, 7, 8, 6, 7, 8, 9, 7, 8], [1, 7, 8], [5, 7, 8, 6, 7, 8, 7, 8, 4, 3], [1, 7, 8, 2]]
    layout = replace(layout, header=(7, 8), question=(11,))
    inputs = layout.lay_out(sequences, [0, 1, 0, 1], 0, np.array([6, 3, 6, 3], np.int32))
    ids = inputs.input_ids.flatten()
    found = [ids[places[places >= 0]].tolist() for places in inputs.response]
    assert found == [[9, 7, 8], [8], [7, 8, 4, 3], [2]]
