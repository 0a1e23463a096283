"""The made-up pairs of the speed benchmark, and its last line."""

import json

import numpy as np
import pytest

from benchmarks.speed import lengths
from benchmarks.speed.tables import last_line, layer_parameters, matmul_share, speed_table, speeds


def test_lengths_have_the_moments_of_the_data_sets():
    ratios = {}
    for name, profile in lengths.PROFILES.items():
        found = lengths.lengths_of(profile, 20_000, seed=0)
        assert found.min() >= 0 and (found[:, 0] + found[:, 1:].max(axis=1)).max() <= profile.max_length
        ratios[name] = found[:, 0].mean() / found[:, 1:].mean()
        logs = np.log(found[:, 1])
        assert logs.mean() == pytest.approx(profile.response[0], abs=0.05)
    assert ratios["hh"] > 1.5 > 1 > ratios["ultrafeedback"]


def test_pairs_share_their_prompt_and_nothing_behind_it():
    for (prompt, n_a, n_b), (a, b) in zip(
        [(5, 3, 4), (0, 2, 2), (9, 1, 6)],
        lengths.make_pairs(np.array([[5, 3, 4], [0, 2, 2], [9, 1, 6]]), seed=0),
        strict=True,
    ):
        assert (len(a), len(b)) == (prompt + n_a, prompt + n_b)
        assert a[:prompt] == b[:prompt] and a[prompt] != b[prompt] and a[-1] == b[-1] == 1
        assert max(a + b) < lengths.VOCABULARY


def test_lengths_of_a_users_files(tmp_path):
    rows = [{"prompt": "x" * 40, "chosen": "y" * 8, "rejected": "z" * 400}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert lengths.lengths_in(tmp_path, 5, max_length=512).tolist() == [[11, 3, 101]]
    assert lengths.lengths_in(tmp_path, 5, max_length=105).tolist() == [[4, 3, 101]]


def test_last_line_gives_ratios_and_a_dash_for_what_was_not_compared():
    def ways(**rates):
        return {name: {"pairs_per_second": rate} for name, rate in rates.items()}

    hh = {"train": ways(ours=3.0), "label": ways(ours=6.0, usual=2.0, best=4.0)}
    assert last_line(hh, 0.512, "hh") == (
        "train_vs_trl_hh=- train_vs_best_trl_hh=- label_vs_pipeline_hh=3.00 label_vs_best_pipeline_hh=1.50 "
        "matmul_share=0.51"
    )
    assert layer_parameters() == 8 * (4 * 512 * 512 + 3 * 512 * 1408)


def measurement(way, repetition, rate, **more):
    fields = {"profile": "hh", "task": "label", "setting": None, "tokens_per_pair": 10.0, "peak_bytes": 2**20}
    return {"name": f"{way} {repetition}", "way": way, "pairs_per_second": rate, **fields, **more}


def test_a_way_is_the_median_of_its_repetitions():
    measured = [measurement("ours", i, rate) for i, rate in enumerate((1.0, 9.0, 4.0))]
    measured += [measurement("best", 0, 2.0, setting="4 sorted"), measurement("grid", 0, 100.0)]
    found = speeds(measured)
    assert [*found["hh"]["label"]] == ["ours", "best"] and found["hh"]["label"]["ours"]["pairs_per_second"] == 4.0
    assert speed_table(found).splitlines()[2:] == [
        "| HH-RLHF | labelling | ours | - | 10 | 1 MiB |",
        "| HH-RLHF | labelling | pipeline, best setting: 4 sorted | 2.00 | 10 | 1 MiB |",
    ]
    # Two operations a weight and token: 4 pairs a second of 10 tokens, beside a machine of twice that rate.
    rate = 2 * 2 * layer_parameters() * 40
    assert matmul_share([*measured, {"name": "matmul 0", "rate": rate}], "hh") == pytest.approx(0.5)
