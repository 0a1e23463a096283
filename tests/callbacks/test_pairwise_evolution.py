"""Evolution with a pairwise judge: it labels the pool where it is good, and knows no label that it must not know."""

import hashlib
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import seed_everything

from ser_lightning.data.reader import PairStore
from ser_lightning.errors import UserError
from ser_lightning.evolution.pairwise_judge import JudgeHead
from ser_lightning.modules import reward as reward_module
from tests.callbacks.test_evolution import Recorder
from tests.helpers import data, equal, evolution, module, slow, trainer, weights


@pytest.fixture
def knowing(monkeypatch, pairs_file):
    """A judge whose states tell the label of every pair, here the shorter response, and little else."""

    def compare(trainer, reward_model, tokenizer, data, max_length):
        store: PairStore = data.data.store
        pairs = sorted(store.read_texts(range(len(store.pair_id))), key=lambda pair: pair.pair_id)
        generator = torch.Generator().manual_seed(0)
        states = 0.1 * torch.randn(len(pairs), 4, generator=generator)
        states[:, 0] = torch.tensor([1.0 if len(p.response_a) < len(p.response_b) else -1.0 for p in pairs])
        return torch.tensor([pair.pair_id for pair in pairs]), states

    monkeypatch.setattr(reward_module, "cache_comparisons", compare)


def judged(model_dir, **kwargs):
    return module(model_dir, pairwise_judge=True, **kwargs)


def test_a_judge_that_knows_more_labels_the_pool(tiny_model_dir, pairs_file, knowing):
    for name, wants in (("alone", False), ("judged", True)):
        seed_everything(0, verbose=False)
        callback = evolution()
        model = module(tiny_model_dir, lr=1e-7, pairwise_judge=wants)  # it learns nothing by itself
        trainer(name, callback).fit(model, data(pairs_file))
        row = callback.state.rows[0]
        assert (row.pool_accuracy > 0.95) == wants
        assert (row.pseudo_label_accuracy == 1.0) == wants


def test_what_is_trained_on_are_the_labels_of_both_views(tiny_model_dir, pairs_file, knowing):
    log = Recorder()
    trainer("run", evolution(), log).fit(judged(tiny_model_dir), data(pairs_file))
    audit = pq.read_table("run/rounds/0/audit.parquet").to_pydict()
    labels = dict(zip(audit["pair_id"], audit["probability"], strict=True))
    last = log.epochs[-1]["target"]
    trained = {i: target for i, target in last.items() if i in labels}
    assert trained and all((labels[i] > 0.5) == (target > 0.5) for i, target in trained.items())


def test_the_chain_of_a_fold_has_a_judge_that_never_saw_the_fold(tiny_model_dir, pairs_file, knowing, monkeypatch):
    asked, logits = [], JudgeHead.logits

    def logged(head, pair_id, left_out=None):
        asked.append(None if left_out is None else left_out.tolist())
        return logits(head, pair_id, left_out)

    monkeypatch.setattr(JudgeHead, "logits", logged)
    model, pairs = judged(tiny_model_dir, lr=1e-7), data(pairs_file)
    trainer("run", evolution()).fit(model, pairs)
    folds = [pairs.pair_ids("seed", fold, 2).tolist() for fold in range(2)]
    assert asked == [*folds, None, None]  # after the last round no fold needs labels


def test_a_judge_at_chance_is_not_used_and_changes_nothing(tiny_model_dir, pairs_file, monkeypatch, caplog):
    def compare(trainer, reward_model, tokenizer, data, max_length):
        pair_id = torch.from_numpy(data.data.store.pair_id.copy()).sort().values
        return pair_id, torch.randn(len(pair_id), 4, generator=torch.Generator().manual_seed(3))

    monkeypatch.setattr(reward_module, "cache_comparisons", compare)
    found = []
    for name, wants in (("alone", False), ("judged", True)):
        seed_everything(0, verbose=False)
        model = module(tiny_model_dir, lr=2e-2, pairwise_judge=wants)
        with caplog.at_level("INFO"):
            trainer(name, evolution(seed_epochs=8)).fit(model, data(pairs_file))
        found.append(weights(model))
    assert "the judge is not used" in caplog.text
    assert equal(*found)


@pytest.mark.parametrize("train", ["head", *slow("full")])
def test_a_judged_run_that_was_broken_off_goes_on_as_if_nothing_had_happened(
    tiny_model_dir, pairs_file, monkeypatch, train
):
    seed_everything(0, verbose=False)
    whole = judged(tiny_model_dir, train=train)
    trainer("whole", evolution()).fit(whole, data(pairs_file))
    seed_everything(0, verbose=False)
    trainer("broken", evolution(), max_epochs=3).fit(judged(tiny_model_dir, train=train), data(pairs_file))
    shutil.rmtree("cache")  # the comparisons are made again
    seed_everything(5, verbose=False)
    resumed = judged(tiny_model_dir, train=train)
    trainer("broken", evolution()).fit(resumed, data(pairs_file), ckpt_path="broken/checkpoints/last.ckpt")
    assert equal(weights(whole), weights(resumed))
    files = [Path(run, "rounds", "0", "audit.parquet") for run in ("whole", "broken")]
    assert len({hashlib.sha256(file.read_bytes()).hexdigest() for file in files}) == 1


@pytest.mark.slow
def test_two_ranks_compare_and_label_as_one(tiny_run, tiny_fit, on_two_ranks):
    flags = ("--model.pairwise_judge=true", "--model.optimizer.init_args.lr=1e-7")  # so that the judge is used
    on_two_ranks("fit", *tiny_run, *flags, "--run_dir=two", "--trainer.devices=2", "--trainer.strategy=ddp")
    one, two = (
        pq.read_table(Path(run, "rounds", "0", "audit.parquet")).to_pydict()
        for run in (tiny_fit(*flags, name="one"), "two")
    )
    assert one["pair_id"] == two["pair_id"] and one["label"] == two["label"] and one["kept"] == two["kept"]
    assert one["probability"] == pytest.approx(two["probability"], abs=1e-4)


def test_what_cannot_be_judged_is_refused(tiny_model_dir, pairs_file, monkeypatch):
    with pytest.raises(UserError, match=r"folds: got 0 with model\.pairwise_judge"):
        trainer("run", evolution(folds=0)).fit(judged(tiny_model_dir), data(pairs_file))
    with pytest.raises(UserError, match=r"^model.pairwise_judge: got true without a PreferenceDataModule, whose pairs"):
        trainer("none", max_epochs=1).fit(judged(tiny_model_dir), torch.utils.data.DataLoader([0]))
    model = judged(tiny_model_dir)
    monkeypatch.setattr(reward_module.RewardModule, "_choose_readings", lambda *args: None)
    loaded = reward_module.load_reward_model

    def encoder(*args, **kwargs):
        found = loaded(*args, **kwargs)
        found.is_decoder = False
        return found

    monkeypatch.setattr(reward_module, "load_reward_model", encoder)
    with pytest.raises(UserError, match="pairwise_judge: got true for an encoder"):
        trainer("other", evolution()).fit(model, data(pairs_file))
