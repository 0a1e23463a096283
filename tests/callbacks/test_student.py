"""A student of a finished run: an ordinary reward model of the seed and of the run's pseudo-labels."""

import contextlib
import json
import math
import shutil
import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ser_lightning import Scorer
from ser_lightning.__main__ import main
from ser_lightning.callbacks.guards import GuardCallback
from ser_lightning.evolution.selection import TopShareRule
from tests.helpers import data, equal, evolution, fit, module, plain_reward, problems_of, read_csv, trainer, weights

RULE = ("--evolution.rule=ser_lightning.TopShareRule", "--evolution.rule.share=0.5")


class Watcher(Callback):
    """Targets of every epoch, by fold; ends the process in an epoch."""

    def __init__(self, crash_at=None):
        self.epochs, self.crash_at = [], crash_at

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append((trainer.datamodule.phase.fold, {}))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if len(self.epochs) == self.crash_at and batch_idx == 1:
            raise KeyboardInterrupt
        for micro in batch:
            self.epochs[-1][1].update(zip(micro.pair_id.tolist(), micro.target.tolist(), strict=True))


def kept_by(run):
    """Pool pairs that the delivered round of a run keeps, with their labels."""
    [number] = [row["round"] for row in read_csv(f"{run}/rounds.csv") if row["delivered"] == "1"]
    rows = pq.read_table(Path(run, "rounds", number, "audit.parquet")).to_pylist()
    return {row["pair_id"]: float(row["label"]) for row in rows if row["kept"]}


def learn(model_dir, pairs_file, run, *extra, ckpt_path=None):
    seed_everything(0, verbose=False)
    model, callback = module(model_dir), evolution(TopShareRule(0.5), max_rounds=0, seed_epochs=2)
    pairs = data(pairs_file, teacher="teacher")
    trainer(run, callback, *extra).fit(model, pairs, ckpt_path=ckpt_path)
    return model, callback, pairs


@pytest.fixture(scope="module")
def teacher_once(tiny_model_dir, pairs_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    with contextlib.chdir(folder):
        return folder / "teacher", fit(tiny_model_dir, pairs_file, "teacher")[1]


@pytest.fixture
def teacher(teacher_once):
    """Callback of a run, which is in the folder `teacher`."""
    shutil.copytree(teacher_once[0], "teacher")
    return teacher_once[1]


def test_a_student_trains_on_human_labels_and_on_those_that_its_teacher_keeps(tiny_model_dir, pairs_file, teacher):
    watcher = Watcher()
    _, callback, pairs = learn(tiny_model_dir, pairs_file, "student", watcher)
    seed, test = pairs.pair_ids("seed"), set(pairs.pair_ids("test").tolist())
    human = dict(zip(seed.tolist(), pairs.seed_labels(seed).tolist(), strict=True))
    assert [fold for fold, _ in watcher.epochs] == [0, 0, 1, 1, None, None]
    assert watcher.epochs[-1][1] == human | kept_by("teacher")
    for fold, targets in watcher.epochs[:4]:
        out = set(pairs.pair_ids("seed", fold, 2).tolist())
        [chain] = teacher.state.fold_history[fold]
        own = dict(zip(chain.pair_id.tolist(), map(float, chain.label), strict=True))
        assert targets == {i: label for i, label in human.items() if i not in out} | own
    assert not any(test & targets.keys() for _, targets in watcher.epochs)
    assert callback.state.finished and [row.round for row in callback.state.rows] == [0]


@pytest.mark.usefixtures("teacher")
def test_a_student_is_not_taken_for_a_model_that_has_never_seen_the_pool(tiny_model_dir, pairs_file, monkeypatch):
    """The guard of shift compares how sure models are of seed and pool that were trained on neither."""
    views = []
    monkeypatch.setattr(GuardCallback, "inspect", lambda self, trainer, view: views.append(view) or "ignore")
    for teacher in ("teacher", None):
        seed_everything(0, verbose=False)
        pairs = data(pairs_file, teacher=teacher)
        trainer(f"run-{teacher}", evolution(TopShareRule(0.5)), GuardCallback()).fit(module(tiny_model_dir), pairs)
    taught, plain = ([len(view.fold_pool) for view in views[i : i + 2]] for i in (0, 2))
    assert taught == [0, 0] and plain == [2, 0]


@pytest.mark.usefixtures("teacher")
def test_a_student_survives_a_crash(tiny_model_dir, pairs_file):
    unbroken, _, _ = learn(tiny_model_dir, pairs_file, "unbroken")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        learn(tiny_model_dir, pairs_file, "broken", Watcher(crash_at=4))
    again, _, pairs = learn(tiny_model_dir, pairs_file, "broken", ckpt_path="broken/checkpoints/last.ckpt")
    assert equal(weights(unbroken), weights(again))
    assert set(pairs.accepted.pair_id.tolist()) == kept_by("teacher").keys()


def student_of(run, *flags, to="student"):
    return ["fit", "--config", f"{run}/config.yaml", "--config=student.yaml", f"--data.teacher={run}",
            f"--run_dir={to}", *flags]  # fmt: skip


def test_one_command_makes_a_plain_student_of_a_run_that_exports_as_none(tiny_fit, capsys):
    run = tiny_fit(*RULE, "--model.backbone.train=head", "--model.reading=[mean]")
    assert main(["export", str(run)]) == 0
    said = capsys.readouterr().out
    assert "It is no plain classifier" in said and "--config student.yaml --data.teacher run" in said
    assert main(student_of(run, "--model.optimizer.init_args.lr=0.01")) == 0
    assert "Round 0 is the student of run" in " ".join(capsys.readouterr().out.split())
    [row] = read_csv("student/rounds.csv")
    assert row["delivered"] == "1" and not math.isnan(float(row["seed_oof_accuracy"]))
    assert main(["export", "student"]) == 0
    assert "no plain classifier" not in capsys.readouterr().out
    assert not Path("student/export/reward_model.py").exists()
    assert AutoModelForSequenceClassification.from_pretrained("student/export").config.num_labels == 1
    prompt, response = "What is 3 plus 3?", "It is 6."
    expected = Scorer.load("student").score([prompt], [response])
    assert plain_reward(Path("student/export"), prompt, response)[0] == pytest.approx(float(expected), abs=1e-4)
    assert AutoTokenizer.from_pretrained("student/export").chat_template
    card = Path("student/export/README.md").read_text()
    assert "learned from another one" in card and "pseudo-labels of another run, `run`" in card
    page = Path("student/report.html").read_text()
    assert "Round 0 is the student of run" in page and "pseudo-labels from" in page
    assert main(["report", "student", "--to", "page.html"]) == 0
    assert main(["test", "--run_dir=student", "--ckpt_path=last"]) == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data.split_seed=1"], "data.teacher: got run, which has other splits or seed labels: split_seed was 0 and"),
        (["--evolution.folds=3"], "evolution.folds: got 3, but run has pseudo-labels for 2 folds; set it to 2"),
        (["--data.teacher=elsewhere"], "run: elsewhere has no rounds.csv; give the folder of a fit that has finished"),
    ],
)  # fmt: skip
def test_a_teacher_that_does_not_fit_is_one_line_and_leaves_nothing(tiny_fit, capsys, flags, said):
    run = tiny_fit(*RULE)
    [problem] = problems_of(capsys, *student_of(run, *flags))
    assert problem.startswith(said)
    assert not Path("student").exists()


def test_a_plan_counts_what_a_teacher_gives(tiny_fit, capsys):
    run = tiny_fit(*RULE)
    assert main(["plan", *student_of(run)[1:], "--evolution.folds=2", "--json=plan.json"]) == 0
    found = json.loads(Path("plan.json").read_text())
    kept, [first] = len(kept_by(run)), found["rounds"]["rounds"]
    seed = found["data"]["splits"]["seed"]["pairs"]
    assert found["data"]["splits"]["taught"]["pairs"] == kept > 10
    folds = 2 * 2 * (seed / 2 + kept)
    assert first["trained_pairs"] == [2 * (seed + kept) + folds] * 2


def test_a_student_without_a_teacher_is_told_so(tiny_run):
    with pytest.warns(UserWarning, match=r"^data.teacher: got none with student.yaml.* seed labels alone; name the"):
        assert main(["fit", *tiny_run, "--config", "student.yaml", "--run_dir=alone"]) == 0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="data.teacher")
        assert main(["fit", *tiny_run, "--run_dir=usual"]) == 0
