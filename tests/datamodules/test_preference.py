"""The data module around its training steps: scoring, stages of the Trainer, questions, state, arguments."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch

from ser_lightning.datamodules import preference as preference_module
from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.errors import UserError
from ser_lightning.planning.memory import auto_budgets
from ser_lightning.records import PairBatch
from tests.helpers import module

# Scoring, validation, test and predict.


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("split", ["seed", "pool", "test", "all"])
def test_every_pair_is_scored_once_in_equally_many_batches_a_rank(load, path, by_id, split, world_size):
    ranks = [load(path, rank, world_size, tokens_per_scoring_batch=400, val_fraction=0.3) for rank in range(world_size)]
    loaders = [datamodule.scoring_dataloader(split) for datamodule in ranks]
    contents = by_id(*loaders)  # a pair that is scored twice fails here, unless it weighs nothing
    assert sorted(contents) == ranks[0].pair_ids(split).tolist()
    assert len({len(list(loader)) for loader in loaders}) == 1
    assert all(batch.target.isnan().all() for loader in loaders for batch in loader)
    assert all(batch.inputs.input_ids.numel() <= 400 for loader in loaders for batch in loader)


def test_empty_splits_have_no_batches(load, path):
    datamodule = load(path, test_fraction=0.0)
    assert list(datamodule.scoring_dataloader("test")) == []
    with pytest.raises(UserError, match="got no test pairs; set data.test_path, data.test_fraction or data.eval_sets"):
        datamodule.test_dataloader()
    with pytest.raises(ValueError, match="split: got 'train'; use seed, pool, test or all"):
        datamodule.scoring_dataloader("train")


def test_validation_pairs_come_out_of_the_seed_and_are_not_trained_on(load, path, step_contents, by_id):
    whole, cut = load(path, seed_fraction=0.5), load(path, seed_fraction=0.5, val_fraction=0.25)
    seed, validation = set(whole.pair_ids("seed").tolist()), set(by_id(cut.val_dataloader()))
    assert validation < seed
    assert len(validation) == pytest.approx(len(seed) / 4, abs=2)
    assert {i for step in step_contents(cut) for i in step} == seed - validation
    assert torch.equal(cut.pair_ids("test"), whole.pair_ids("test"))
    labels = whole.seed_labels(torch.tensor(list(validation)))
    assert [content[2] for content in map(by_id(cut.val_dataloader()).get, validation)] == labels.tolist()


def test_without_validation_pairs_fit_validates_nothing_and_validate_says_so(load, path):
    datamodule = load(path)
    assert datamodule.val_dataloader() == []
    datamodule.trainer.state.fn = "validate"
    with pytest.raises(UserError, match="got no validation pairs; set data.val_fraction or data.eval_sets"):
        datamodule.val_dataloader()


def test_test_batches_hold_the_labels_of_the_file(load, write_jsonl, make_rows, by_id):
    rows = [{**row, "id": str(i)} for i, row in enumerate(make_rows(60))]
    datamodule = load(write_jsonl("pairs.jsonl", rows))
    contents = by_id(datamodule.test_dataloader())
    assert len(contents) > 5
    for pair in datamodule.lookup(list(contents)):
        row = rows[int(pair.source_id)]
        assert contents[pair.pair_id][2] == (row["label"] == (pair.response_a == row["response_a"]))


def test_predict_scores_the_split_that_was_chosen(load, path, by_id):
    sizes = {}
    for split in ("pool", "seed", "test", "all"):
        datamodule = load(path, predict_split=split)
        sizes[split] = sorted(by_id(datamodule.predict_dataloader()))
        assert sizes[split] == datamodule.pair_ids(split).tolist()
    assert sizes["all"] == sorted(sizes["pool"] + sizes["seed"] + sizes["test"])


# Ties.


def test_ties_of_the_seed_are_trained_on_and_measured_on_nowhere(load, write_jsonl, make_rows, step_contents, by_id):
    rows = [{**row, "id": str(i)} for i, row in enumerate(make_rows(150))]
    fractions = {"seed_fraction": 0.5, "test_fraction": 0.3, "val_fraction": 0.3}
    plain = load(write_jsonl("plain.jsonl", rows), **fractions)
    tied = load(write_jsonl("tied.jsonl", [{**row, "label": 0.5} if i % 3 == 0 else row for i, row in enumerate(rows)]),
                **fractions)  # fmt: skip
    is_tie = {pair.pair_id: int(pair.source_id) % 3 == 0 for pair in plain.lookup(plain.pair_ids("all"))}
    for split in ("seed", "test"):
        kept = [i for i in plain.pair_ids(split).tolist() if not is_tie[i]]
        assert tied.pair_ids(split).tolist() == kept
    assert torch.equal(tied.pair_ids("pool"), plain.pair_ids("pool"))
    assert tied.pair_ids("ties").tolist() == [i for i in plain.pair_ids("seed").tolist() if is_tie[i]]
    assert set(by_id(tied.val_dataloader())) == {i for i in by_id(plain.val_dataloader()) if not is_tie[i]}
    trained = {i: content[2] for step in step_contents(tied) for i, content in step.items()}
    expected = {i: content[2] for step in step_contents(plain) for i, content in step.items()}
    assert trained == {i: 0.5 if is_tie[i] else target for i, target in expected.items()}
    assert tied.num_train_pairs == plain.num_train_pairs
    assert {pair.label for pair in tied.lookup(tied.pair_ids("ties"))} == {0.5}
    counts = {name: tied.report.between[f"tie_{name}"] for name in ("seed", "val", "test")}
    assert min(counts.values()) > 3 and counts["seed"] == len(tied.pair_ids("ties"))
    assert f"not measured{counts['seed']:>11}".split() == tied.report.table().splitlines()[2].split()[-3:]


def test_a_fold_is_left_out_with_the_ties_of_its_dialogues(load, write_jsonl, make_rows, step_contents):
    rows = [{**row, "label": 0.5 if i % 4 == 0 else row["label"]} for i, row in enumerate(make_rows(150))]
    data = load(write_jsonl("pairs.jsonl", rows), seed_fraction=1.0, test_fraction=0.0)
    prompt_of = {pair.pair_id: pair.prompt[0]["content"] for pair in data.lookup(data.pair_ids("all"))}
    ties = set(data.pair_ids("ties").tolist())
    seen = []
    for fold in range(3):
        left_out = {prompt_of[i] for i in data.pair_ids("seed", fold, 3).tolist()}
        data.begin_phase(0, fold, 3)
        trained = {i for step in step_contents(data) for i in step}
        assert trained & ties == {i for i in ties if prompt_of[i] not in left_out} < ties
        assert not left_out & {prompt_of[i] for i in trained}
        seen.append(trained & ties)
    assert set.union(*seen) == ties


# Questions.


def test_lookup_gives_texts_in_the_order_asked_and_labels_of_the_seed_alone(load, write_jsonl, make_rows):
    rows = [{**row, "id": str(i)} for i, row in enumerate(make_rows(60))]
    datamodule = load(write_jsonl("pairs.jsonl", rows), seed_fraction=0.5, val_fraction=0.5)
    ids = datamodule.pair_ids("all").flip(0)
    pairs = datamodule.lookup(ids)
    assert [pair.pair_id for pair in pairs] == ids.tolist()
    seed = set(datamodule.pair_ids("seed").tolist())
    for pair in pairs:
        row = rows[int(pair.source_id)]
        assert pair.prompt == [{"role": "user", "content": row["prompt"]}]
        is_turned = pair.response_a == row["response_b"]
        assert pair.label == ((row["label"] != is_turned) if pair.pair_id in seed else None)
    with pytest.raises(KeyError):
        datamodule.lookup([1])


def test_only_seed_labels_are_told(datamodule):
    for split in ("pool", "test"):
        with pytest.raises(KeyError):
            datamodule.seed_labels(datamodule.pair_ids(split)[:1])
    assert datamodule.seed_labels(torch.tensor([], dtype=torch.int64)).shape == (0,)
    with pytest.raises(ValueError, match="use pool, val or test"):
        datamodule.held_out_labels("seed")


# State.


def test_state_is_taken_up_by_another_process(load, path, datamodule, step_contents, tmp_path):
    datamodule.begin_phase(2, fold=1, num_folds=4)
    torch.save(datamodule.state_dict(), tmp_path / "state.pt")
    other = load(path, seed_fraction=0.5, pairs_per_step=16)
    assert step_contents(other) != step_contents(datamodule)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.phase == datamodule.phase
    assert step_contents(other) == step_contents(datamodule)


@pytest.mark.parametrize(
    "change", [{"seed_fraction": 0.4}, {"split_seed": 1}, {"test_fraction": 0.3}, {"val_fraction": 0.2}]
)
def test_a_checkpoint_of_other_data_is_refused_to_train_and_ignored_to_test(load, path, datamodule, change):
    other = load(path, **{"seed_fraction": 0.5, **change})
    with pytest.raises(UserError, match="resume with the same files, fractions and split_seed"):
        other.load_state_dict(datamodule.state_dict())
    other.trainer.state.fn = "test"
    other.load_state_dict(datamodule.state_dict())
    assert len(other.accepted) == 0


def test_a_changed_seed_label_is_other_data(load, write_jsonl, make_rows):
    rows = [{**row, "id": str(i)} for i, row in enumerate(make_rows(30))]
    before = load(write_jsonl("a.jsonl", rows))
    pair = before.lookup(before.pair_ids("seed"))[0]
    rows[int(pair.source_id)]["label"] ^= 1
    assert load(write_jsonl("b.jsonl", rows)).data.fingerprint != before.data.fingerprint


# Arguments.


def test_max_length_cuts_and_drops(load, write_jsonl):
    good = [{"prompt": f"{i} " + "q" * 50, "chosen": "yes", "rejected": "no"} for i in range(20)]
    path = write_jsonl("a.jsonl", [*good, {"prompt": "Hi", "chosen": "y" * 80, "rejected": "no"}])
    short, long = load(path, max_length=40), load(path, max_length=200)
    assert (short.report.read["path"]["cut"], short.report.read["path"]["too_long"]) == (20, 1)
    assert (long.report.read["path"]["cut"], long.report.read["path"]["too_long"]) == (0, 0)
    assert max(batch.inputs.input_ids.shape[1] for batch in short.scoring_dataloader("all")) <= 40


def test_auto_is_what_fits_on_the_gpu(load, path, tiny_model_dir, monkeypatch):
    datamodule, model, found = load(path, tokens_per_batch="auto"), module(tiny_model_dir), []
    model.configure_model()
    for gib in (1.0, 1.05, 40):
        monkeypatch.setattr(preference_module, "device_bytes", lambda device, gib=gib: ("GPU", int(gib * 2**30)))
        strategy = SimpleNamespace(root_device=torch.device("cuda"))
        datamodule.trainer = SimpleNamespace(strategy=strategy, precision="32-true", lightning_module=model)
        datamodule._auto_budgets = None
        expected = auto_budgets(model.reward_model, model.backbone, "32-true", "cuda", int(gib * 2**30))
        assert datamodule._budgets() == (expected[0], 16384)
        found.append(expected[0])
    assert found[0] < found[-1]


def test_columns_pool_and_test_files_reach_their_splits(load, write_jsonl):
    def rows(name, count):
        return [{"question": f"{name} {i}", "good": "yes", "bad": "no"} for i in range(count)]

    datamodule = load(
        [write_jsonl("a.jsonl", rows("a", 4)), write_jsonl("b.jsonl", rows("b", 3))],
        pool_path=write_jsonl("pool.jsonl", rows("pool", 9)),
        test_path=write_jsonl("test.jsonl", rows("test", 5)),
        columns={"prompt": "question", "chosen": "good", "rejected": "bad"},
    )
    assert {name: numbers[0] for name, numbers in datamodule.report.splits.items()} == {
        "seed": 7, "val": 0, "pool": 9, "test": 5,
    }  # fmt: skip


def test_all_labels_are_one_argument_away_and_the_test_set_stays(load, path):
    few, all_labels = load(path), load(path, seed_fraction=1.0)
    assert torch.equal(few.pair_ids("test"), all_labels.pair_ids("test"))
    assert all_labels.pair_ids("seed").tolist() == sorted(
        [*few.pair_ids("seed").tolist(), *few.pair_ids("pool").tolist()]
    )


def test_synthetic_pairs_as_many_as_asked(load):
    datamodule = load("synthetic", synthetic_pairs=40, max_length=2000)
    assert datamodule.report.read["path"]["rows"] == 40


def test_cache_goes_where_it_is_told_and_is_used_again(load, path, tmp_path, monkeypatch):
    load(path, cache_dir=str(tmp_path / "mine"))
    assert len(list((tmp_path / "mine").iterdir())) == 1
    monkeypatch.setattr("ser_lightning.datamodules.base.build_store", None)
    load(path, cache_dir=str(tmp_path / "mine"))
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load(path, cache_dir=None)
    assert len(list((tmp_path / "xdg" / "ser-lightning").iterdir())) == 1


def test_impossible_arguments_are_all_named_at_once():
    with pytest.raises(UserError) as error:
        PreferenceDataModule(
            columns={"question": "prompt"}, seed_fraction=0, test_fraction=1, val_fraction=-0.1, max_length=0,
            pairs_per_step=0, tokens_per_batch=0, tokens_per_scoring_batch=0, num_workers=-1, synthetic_pairs=0,
        )  # fmt: skip
    starts = [problem.partition(":")[0] for problem in error.value.problems]
    assert starts == [
        "columns", "seed_fraction", "test_fraction", "val_fraction", "max_length", "synthetic_pairs",
        "pairs_per_step", "tokens_per_batch", "tokens_per_scoring_batch", "num_workers",
    ]  # fmt: skip


def test_a_seed_that_is_too_small_stops_training_only(load, write_jsonl, make_rows):
    path = write_jsonl("a.jsonl", [{**row, "label": None} for row in make_rows(9)])
    assert len(load(path, stage="predict").pair_ids("pool")) == 9
    with pytest.raises(UserError, match="got 0 labelled pairs to train on, need at least 8; label some of the pairs"):
        load(path, stage="fit")
    labelled = write_jsonl("b.jsonl", make_rows(30))
    with pytest.raises(UserError, match="; raise data.max_length, for which 30 pairs of data.path are too long$"):
        load(labelled, stage="fit", max_length=2)
    with pytest.raises(UserError, match="need at least 8; raise data.seed_fraction or give more pairs with a label$"):
        load(labelled, stage="fit", seed_fraction=0.05)
    held_out = "need at least 8; lower data.val_fraction, lower data.test_fraction or give more pairs with a label$"
    with pytest.raises(UserError, match=held_out):
        load(labelled, stage="fit", seed_fraction=1.0, val_fraction=0.9)


def test_a_seed_is_too_small_for_the_reason_that_most_of_its_labels_are_lost_to(load, write_jsonl, make_rows):
    rows = make_rows(40)
    leaked, labelled = write_jsonl("one.jsonl", rows[:1]), write_jsonl("labelled.jsonl", rows)
    with pytest.raises(UserError, match="need at least 8; raise data.seed_fraction or give"):
        load(labelled, stage="fit", seed_fraction=0.05, test_path=leaked)
    most = write_jsonl("most.jsonl", rows[:35])
    with pytest.raises(UserError, match=r"; give a data.test_path of other dialogues: it has those of \d\d pairs of"):
        load(labelled, stage="fit", seed_fraction=1.0, test_path=most)
    # Beside pairs without a label, all labels are the seed's but for the test set, whatever seed_fraction is.
    others = [{**row, "response_b": f"{row['response_b']} Or not.", "label": None} for row in rows]
    mixed = write_jsonl("mixed.jsonl", [*rows[:9], *others])
    with pytest.raises(UserError, match="need at least 8; lower data.test_fraction or give more pairs with a label$"):
        load(mixed, stage="fit", test_fraction=0.3)
    one_long = [{**others[0], "response_a": "x" * 999}, *others]
    with pytest.raises(UserError, match="need at least 8; label some of the pairs"):
        load(write_jsonl("long.jsonl", one_long), stage="fit")


def test_use_before_setup_is_an_error_that_says_so(tiny_tokenizer):
    datamodule = PreferenceDataModule("nowhere.jsonl")
    with pytest.raises(RuntimeError, match="no tokenizer: attach a Trainer or set `.tokenizer`"):
        _ = datamodule.tokenizer
    with pytest.raises(RuntimeError, match="not set up: call prepare_data and setup first"):
        datamodule.pair_ids("pool")


# Under a real Trainer.


class Probe(pl.LightningModule):
    """Notes the batches it is given."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer, self.weight, self.seen = tokenizer, torch.nn.Parameter(torch.zeros(())), {}
        self.automatic_optimization = False

    def note(self, stage, batch):
        for one in batch if isinstance(batch, list) else [batch]:
            assert isinstance(one, PairBatch)
            self.seen.setdefault(stage, []).extend(one.pair_id.tolist())

    def training_step(self, batch, batch_idx):
        assert isinstance(batch, list)
        self.note("fit", batch)

    def validation_step(self, batch, batch_idx):
        self.note("validate", batch)

    def test_step(self, batch, batch_idx):
        self.note("test", batch)

    def predict_step(self, batch, batch_idx):
        self.note("predict", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("val_fraction", [0.0, 0.3])
def test_trainer_runs_every_stage_with_whole_splits(path, tiny_tokenizer, tmp_path, val_fraction):
    datamodule = PreferenceDataModule(path, seed_fraction=0.5, val_fraction=val_fraction, num_workers=0)
    probe = Probe(tiny_tokenizer)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
        reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
    trainer.fit(probe, datamodule=datamodule)
    seed = datamodule.pair_ids("seed").tolist()
    first, second = probe.seen["fit"][: len(seed)], probe.seen["fit"][len(seed) :]
    assert sorted(first) == sorted(second) == seed
    assert first != second
    assert len(probe.seen.get("validate", [])) == 2 * datamodule.report.splits["val"][0]
    trainer.test(probe, datamodule=datamodule, verbose=False)
    trainer.predict(probe, datamodule=datamodule)
    assert sorted(probe.seen["test"]) == datamodule.pair_ids("test").tolist()
    assert sorted(probe.seen["predict"]) == datamodule.pair_ids("pool").tolist()
    if not val_fraction:
        with pytest.raises(UserError, match="val_fraction"):
            trainer.validate(probe, datamodule=datamodule, verbose=False)
