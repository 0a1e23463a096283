"""Agreement of annotators by hand, the noise that it implies in a simulation, and both in the table of a file."""

import numpy as np
import pytest

from ser_lightning.datamodules.annotators import Agreement, agreement_of


def test_agreement_by_hand():
    votes = np.array([[3, 0, 0], [2, 0, 1], [1, 4, 1], [1, 9, 0], [0, 0, 0]])
    assert agreement_of(votes) == Agreement(3, pytest.approx((1 + 1 / 3 + 0) / 3))
    assert agreement_of(votes[3:]) is None


@pytest.mark.parametrize("error", [0.0, 0.1, 0.3])
def test_the_error_rate_is_that_of_the_simulated_annotators(error):
    draw = np.random.default_rng(0)
    is_right = draw.random((20_000, 3)) > error
    found = agreement_of(np.stack([is_right.sum(1), np.zeros(20_000), (~is_right).sum(1)], axis=1).astype(int))
    assert found.error_rate == pytest.approx(error, abs=0.01)


def test_annotators_who_disagree_more_than_chance_are_wrong_half_of_the_time():
    assert Agreement(10, 0.2).error_rate == 0.5


def test_the_table_of_a_file_tells_the_agreement_on_the_seed_alone(load, write_jsonl, make_rows):
    plain = make_rows(90)
    who = {"columns": {"annotator": "who"}, "seed_fraction": 0.5}
    rows = [{**row, "who": name, "id": str(i)} for i, row in enumerate(plain) for name in ("Ann", "Ben")]
    agreed = load(write_jsonl("agreed.jsonl", rows), **who)
    assert agreed.report.annotators == Agreement(len(agreed.pair_ids("seed")), 1.0)
    assert "another annotator's vote on the same pair" in agreed.report.table()
    seed = {int(pair.source_id) for pair in agreed.lookup(agreed.pair_ids("seed"))}
    half = sorted(seed)[::2]

    def turned(row, places):
        return {**row, "label": 1 - row["label"]} if row["who"] == "Ben" and int(row["id"]) in places else row

    others = load(write_jsonl("others.jsonl", [turned(row, set(range(90)) - seed) for row in rows]), **who)
    assert others.report.annotators == agreed.report.annotators
    torn = load(write_jsonl("torn.jsonl", [turned(row, half) for row in rows]), **who)
    assert torn.report.annotators == Agreement(len(seed), pytest.approx(1 - len(half) / len(seed)))
    assert {int(pair.source_id) for pair in torn.lookup(torn.pair_ids("ties"))} == set(half)
    assert torn.report.table().splitlines()[-1].startswith("annotators: two of them agree on 0.")
    assert load(write_jsonl("plain.jsonl", plain)).report.annotators is None
