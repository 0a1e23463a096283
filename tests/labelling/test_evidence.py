"""What labels have brought: a head out of fold with them and without, on features that a fit has left in the cache."""

import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ser_lightning.__main__ import main
from ser_lightning.errors import UserError
from ser_lightning.labelling.evidence import (
    Evidence,
    LabelGain,
    gain_sentences,
    label_gain,
    last_accuracy,
    open_cached_run,
)
from ser_lightning.runs.files import delivered_round, read_rounds, round_files
from ser_lightning.runs.pair_tables import read_audit
from ser_lightning.runs.weights import read_model
from ser_lightning.training.linear_head import fit_linear_head
from tests.helpers import read_csv

FROZEN = ("--model.backbone.train=head", "--model.reading=auto", "--evolution.folds=2")


def world(num: int, noise: float = 0.0, size: int = 8):
    """Differences of states whose first number decides the label."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, size, generator=generator)
    return x, (x[:, 0] + noise * torch.randn(num, generator=generator) > 0).float()


def test_labels_that_teach_raise_the_accuracy_on_the_same_pairs():
    x, target = world(400)
    target[:20] = 1 - target[:20]  # a seed that teaches the opposite
    gain = label_gain(x, target, np.arange(400), np.arange(400) >= 20, penalty=0.1)
    assert (gain.num_seed, gain.num_new) == (20, 380)
    assert gain.accuracy > 0.9 and gain.low < gain.accuracy < gain.high
    assert gain.change > 0.6 and 0 < gain.change_low < gain.change < gain.change_high


def test_figures_are_those_of_a_loop_that_leaves_out_one_group_at_a_time():
    x, target = world(30, noise=1.0)
    group, is_new = np.arange(30) // 10, np.arange(30) % 3 == 0  # three dialogues, so three folds
    right = {True: [], False: []}
    for left_out in range(3):
        for with_new in (True, False):
            used = [i for i in range(30) if group[i] != left_out and (with_new or not is_new[i])]
            weight = fit_linear_head(x[used], target[used], 0.5)
            for i in (i for i in range(30) if group[i] == left_out):
                right[with_new].append(float((x[i].double() @ weight > 0) == (target[i] > 0)))
    gain = label_gain(x, target, group, is_new, 0.5)
    assert gain.accuracy == pytest.approx(np.mean(right[True]))
    assert gain.change == pytest.approx(np.mean(right[True]) - np.mean(right[False]))


def test_a_tie_is_not_measured_on():
    x, target = world(60)
    ties = torch.where(torch.arange(60) < 10, 0.5, target)
    gain = label_gain(x, ties, np.arange(60), np.arange(60) >= 40, 0.1)
    assert (gain.num_seed, gain.num_new) == (30, 20)
    assert gain.accuracy * 50 == pytest.approx(round(gain.accuracy * 50))  # a share of 50 pairs


def test_without_new_labels_nothing_changes():
    x, target = world(40)
    gain = label_gain(x, target, np.arange(40), np.zeros(40, bool), 1.0)
    assert (gain.num_new, gain.change, gain.change_low, gain.change_high) == (0, 0, 0, 0)
    assert len(gain_sentences(gain)) == 1


def test_sentences_say_how_many_how_much_and_how_sure():
    gain = LabelGain(150, 40, 0.7123, 0.6411, 0.7779, 0.0213, -0.003, 0.046)
    assert gain_sentences(gain) == [
        "Accuracy out of fold 0.712 [0.641, 0.778] on 190 labelled pairs.",
        "Your 40 labels change it by +0.021 [-0.003, +0.046] against the seed's 150 alone.",
    ]
    assert "two dialogues" in gain_sentences(None)[0]


def test_a_frozen_run_is_opened_from_the_cache_with_its_own_features(tiny_run):
    cached_fit(tiny_run)
    opened = open_cached_run(Path("run"))
    files = round_files("run", int(next(row["round"] for row in read_csv("run/rounds.csv") if row["delivered"] == "1")))
    audit, saved = read_audit(files.audit), read_model(files.model)
    # The head of the run gives the rewards of the run on these features, unscaled.
    states = opened.table.states(opened.data.data.rows_of(audit["pair_id"].tolist())).float().flatten(2)
    margins = (states[:, 0] - states[:, 1]) @ saved["weights"]["model.score.weight"][0]
    assert np.allclose(margins, audit["reward_a"] - audit["reward_b"], atol=1e-5)
    assert opened.penalty == saved["reading"]["penalty"]
    new = {int(pair_id): 1 for pair_id in audit["pair_id"][:10]}
    gain = opened.gain({**new, 5: 1})  # 5 is no pair
    assert (gain.num_seed, gain.num_new) == (len(opened.data.pair_ids("seed")), 10)
    assert 0 <= gain.low <= gain.accuracy <= gain.high <= 1


def test_a_run_that_lacks_what_is_needed_says_so(tiny_run, monkeypatch):
    cached_fit(tiny_run)
    files, config = round_files("run", delivered_round(Path("run"))), Path("run/config.yaml")
    pool = read_audit(files.audit)["pair_id"].tolist()
    opened = open_cached_run(Path("run"))
    opened.data.pair_ids = lambda split: torch.tensor(pool[:1] if split == "pool" else [], dtype=torch.int64)
    assert opened.gain(dict.fromkeys(pool, 1)) is None  # one dialogue: none to leave out

    for checksums in Path("run").rglob("checksums.json"):  # what is changed here is no damage
        checksums.unlink()
    rounds = [{**row, "seed_oof_accuracy": math.nan} for row in read_rounds(Path("run"))]
    monkeypatch.setattr("ser_lightning.labelling.evidence.read_rounds", lambda run: rounds)
    assert re.fullmatch(r"The run of 20..-..-.. had no folds, so no accuracy out of fold\.", last_accuracy(Path("run")))

    before = config.read_text()
    config.write_text(before.replace("max_length: 64", "max_len: 64"))
    with pytest.raises(UserError, match="run: run/config.yaml has data that this version does not know .*max_len"):
        open_cached_run(Path("run"))
    config.write_text(before)
    files.audit.rename("audit")
    with pytest.raises(UserError, match=r"run: run/rounds/.*audit.parquet is gone, by which its features are known"):
        open_cached_run(Path("run"))
    Path("audit").rename(files.audit)
    saved = torch.load(files.model, weights_only=True)
    torch.save({**saved, "reading": {**saved["reading"], "penalty": None}}, files.model)
    with pytest.raises(UserError, match=r"run: run/rounds/.*model.pt has no head that was solved exactly"):
        open_cached_run(Path("run"))


def cached_fit(tiny_run):
    """A run of a frozen body, with a cache of its own."""
    flags = [flag for flag in tiny_run if flag != "--model.backbone.train=full"]
    assert main(["fit", *flags, *FROZEN, "--run_dir=run"]) == 0


def settled(evidence: Evidence) -> list[str]:
    """Its sentences, once it has no more to say."""
    while evidence.is_pending:
        evidence._thread.join(0.05)
    return evidence.lines


def test_the_thread_answers_the_last_question(tiny_run):
    cached_fit(tiny_run)
    evidence = Evidence(Path("run"))
    assert evidence.lines == [last_accuracy(Path("run"))] and "without these labels" in evidence.lines[0]
    pool = read_audit(round_files("run", 0).audit)["pair_id"].tolist()
    for count in (1, 2, 12):
        evidence.refresh(dict.fromkeys(pool[:count], count % 2))
    first = settled(evidence)
    assert first[1].startswith("Your 12 labels change it by ")
    evidence.refresh({})
    assert len(settled(evidence)) == 1


def test_a_trained_body_is_said(tiny_fit):
    tiny_fit()
    with pytest.raises(UserError, match="run trained its body"):
        open_cached_run(Path("run"))
    evidence = Evidence(Path("run"))
    evidence.refresh({})
    lines = settled(evidence)
    assert lines[0].startswith("The run of 20") and "What they bring is not known: run trained its body" in lines[1]


@pytest.mark.slow  # a run whose states are computed again
def test_a_cache_that_is_gone_is_said(tiny_run):
    cached_fit(tiny_run)
    cache = Path(os.environ["XDG_CACHE_HOME"])
    features = [*cache.rglob("features-*.bin")]
    assert features
    for file in features:
        values = np.fromfile(file, np.float32)
        (values[::-1]).tofile(file)  # those of another body
    with pytest.raises(UserError, match="its features are not in the cache any more"):
        open_cached_run(Path("run"))
    for file in features:
        file.write_bytes(file.read_bytes()[:100])  # those of another shape
    with pytest.raises(UserError, match="its features are not in the cache any more"):
        open_cached_run(Path("run"))
    for file in features:
        file.unlink()
    with pytest.raises(UserError, match="its features are not in the cache any more"):
        open_cached_run(Path("run"))
    shutil.rmtree(cache)
    with pytest.raises(UserError, match="its pairs are not in the cache any more"):
        open_cached_run(Path("run"))
