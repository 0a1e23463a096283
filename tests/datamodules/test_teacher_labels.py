"""Pseudo-labels of another run as training pairs: only of the pool, never of a test pair, never over a human label."""

import pytest
import torch

from ser_lightning.datamodules import preference
from ser_lightning.errors import UserError
from ser_lightning.runs.teacher import Teacher


@pytest.fixture
def teach(monkeypatch, tmp_path, load, path, select):
    """`teach(ids, labels, folds={}, **arguments)`: a data module taught by a run on `path` with these arguments."""

    def make(ids, labels=None, folds=None, fingerprint=None, config=None, **arguments):
        run = tmp_path / "teacher"
        run.mkdir(exist_ok=True)
        settings = {"path": str(path), "seed_fraction": 0.5, "max_length": 512, **(config or {})}
        lines = "".join(f"    {name}: {value}\n" for name, value in settings.items())
        (run / "config.yaml").write_text(f"data:\n  init_args:\n{lines}")
        fingerprint = fingerprint or load(path, seed_fraction=0.5).data.fingerprint
        teacher = Teacher(run, fingerprint, select(ids, labels), {k: select(i) for k, i in (folds or {}).items()})
        monkeypatch.setattr(preference, "read_teacher", lambda given: teacher)
        return load(**{"path": path, "seed_fraction": 0.5, "teacher": str(run), "stage": "fit", **arguments})

    return make


def trained_on(datamodule, step_contents):
    return {i: content[2] for step in step_contents(datamodule) for i, content in step.items()}


def test_seed_and_taught_pairs_are_trained_on_from_the_first_epoch(load, path, teach, step_contents):
    plain = load(path, seed_fraction=0.5)
    pool, seed = plain.pair_ids("pool"), plain.pair_ids("seed")
    labels = [i % 2 for i in range(20)]
    found = trained_on(teach(pool[:20], labels), step_contents)
    expected = dict(zip(pool[:20].tolist(), map(float, labels), strict=True))
    assert found == expected | dict(zip(seed.tolist(), plain.seed_labels(seed).tolist(), strict=True))
    assert not {*found} & {*plain.pair_ids("test").tolist()}


def test_each_fold_trains_on_labels_of_models_that_never_saw_it(load, path, teach, step_contents):
    pool = load(path, seed_fraction=0.5).pair_ids("pool")
    datamodule = teach(pool[:20], folds={0: pool[:3], 1: pool[3:10]})
    for fold, taught in ((0, pool[:3]), (1, pool[3:10]), (None, pool[:20])):
        datamodule.begin_phase(0, fold, num_folds=2)
        assert {*trained_on(datamodule, step_contents)} & {*pool.tolist()} == {*taught.tolist()}
    with pytest.raises(UserError, match="evolution.folds: got 3, but .* has pseudo-labels for 2 folds; set it to 2"):
        datamodule.begin_phase(0, 0, num_folds=3)


def test_without_folds_of_its_own_a_teacher_teaches_no_fold(load, path, teach, step_contents):
    pool = load(path, seed_fraction=0.5).pair_ids("pool")
    datamodule = teach(pool[:20])
    datamodule.begin_phase(0, 1, num_folds=3)
    assert not {*trained_on(datamodule, step_contents)} & {*pool.tolist()}


def test_a_human_label_that_came_later_wins(load, path, teach, write_jsonl, step_contents):
    plain = load(path, seed_fraction=0.5)
    pool = plain.pair_ids("pool")
    asked = plain.lookup(pool[:2])
    answers = [{"prompt": p.prompt, "response_a": p.response_a, "response_b": p.response_b, "label": 0} for p in asked]
    datamodule = teach(pool[:5], folds={0: pool[:5]}, new_data_path=write_jsonl("answers.jsonl", answers))
    found = trained_on(datamodule, step_contents)
    assert [found[i] for i in pool[:5].tolist()] == [0, 0, 1, 1, 1]
    assert datamodule.accepted_in(0).pair_id.tolist() == sorted(pool[2:5].tolist())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"split_seed": 1}, "split_seed was 0 and is 1"),
        ({"test_fraction": 0.4}, "test_fraction was 0.2 and is 0.4"),
        ({"seed_fraction": 0.3}, "seed_fraction was 0.5 and is 0.3"),
    ],
)
def test_a_teacher_of_other_splits_is_refused(load, path, teach, change, said):
    """Its pool may hold what is a test pair here, and its seed taught it what they are."""
    pool = load(path, seed_fraction=0.5).pair_ids("pool")
    config = {"split_seed": 0, "test_fraction": 0.2, "val_fraction": 0.0}
    with pytest.raises(UserError, match=f"data.teacher: got .*, which has other splits or seed labels: {said}; give"):
        teach(pool[:20], config=config, **change)


def test_a_teacher_of_other_files_is_refused(load, path, teach, write_jsonl, make_rows):
    pool = load(path, seed_fraction=0.5).pair_ids("pool")
    other = write_jsonl("other.jsonl", make_rows(120, seed=7))
    with pytest.raises(UserError, match="path was .*/pairs.jsonl and is .*/other.jsonl"):
        teach(pool[:20], path=other)


def test_a_file_that_has_changed_is_named(load, path, teach):
    pool = load(path, seed_fraction=0.5).pair_ids("pool")
    config = {"test_fraction": 0.2, "split_seed": 0, "val_fraction": 0.0}
    with pytest.raises(UserError, match="though the same settings: has a file changed"):
        teach(pool[:20], fingerprint="another", config=config)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_only_fit_needs_the_teacher(load, path, stage, tmp_path):
    datamodule = load(path, seed_fraction=0.5)
    gone = preference.PreferenceDataModule(
        str(path), seed_fraction=0.5, teacher=str(tmp_path / "gone"), cache_dir=str(tmp_path / "cache")
    )
    gone.trainer = datamodule.trainer
    gone.trainer.state.fn = stage
    gone.prepare_data()
    gone.setup(stage)
    assert torch.equal(gone.pair_ids("test"), datamodule.pair_ids("test")) and len(gone.accepted) == 0
