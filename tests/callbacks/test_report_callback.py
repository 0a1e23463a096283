"""`report.html` in the course of a training: after every round, after a crash, and never in its way."""

import contextlib
import io
import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback

import ser_lightning.report.page
from ser_lightning.__main__ import main
from ser_lightning.callbacks.report import ReportCallback, round_notes
from ser_lightning.evaluation.metrics import effective_pairs, half_credit
from ser_lightning.runs.files import round_files
from ser_lightning.runs.folder import MetricsFile
from ser_lightning.runs.pair_tables import read_test_scores
from tests.helpers import data, equal, evolution, fit, module, read_csv, trainer, weights
from tests.policy_runs import QUIET, responses, sft, sft_flags


class Watch(Callback):
    """How many rounds the page of each epoch tells of; stops with an error in a round, if it is told to."""

    def __init__(self, fail_in=None):
        self.rounds, self.fail_in = [], fail_in

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        page = Path(trainer.default_root_dir, "report.html")
        self.rounds.append(page.read_text().count("<tr") if page.exists() else 0)
        if trainer.datamodule.phase.round == self.fail_in:
            raise RuntimeError("the lights went out")


def notes_of(run, number):
    return json.loads(Path(run, "rounds", str(number), "report.json").read_text())


def rounds_in(page):
    return page.split(">Rounds</h2>")[1].split("</table>")[0].count("<tr") - 1


@pytest.fixture(scope="module")
def fitted_once(tiny_model_dir, pairs_file, tmp_path_factory):
    folder, watch, out = tmp_path_factory.mktemp("fitted"), Watch(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        model, callback = fit(tiny_model_dir, pairs_file, "run", ReportCallback(), watch)
    return folder, model, callback, watch.rounds, out.getvalue()


@pytest.fixture
def fitted(fitted_once):
    """Module and callback of a finished run, and a copy of it in the folder `run`."""
    folder, model, callback, _, _ = fitted_once
    shutil.copytree(folder, ".", dirs_exist_ok=True)
    return model, callback


def test_the_page_is_there_after_every_round_and_names_the_last_one(fitted_once, fitted):
    *_, rounds, said = fitted_once
    assert rounds[0] == 0 and rounds[-1] > 0
    assert rounds_in(Path("run/report.html").read_text()) == 2
    assert said.splitlines()[-1] == "Report: run/report.html"


def test_it_changes_nothing_in_the_training(fitted, tiny_model_dir, pairs_file):
    without, _ = fit(tiny_model_dir, pairs_file, "plain")
    assert equal(weights(fitted[0]), weights(without))
    one, other = ([{**row, "seconds": 0} for row in read_csv(f"{run}/rounds.csv")] for run in ("run", "plain"))
    assert one == other


def test_a_crash_leaves_the_page_of_the_finished_rounds(tiny_model_dir, pairs_file):
    with pytest.raises(RuntimeError, match="the lights went out"):
        fit(tiny_model_dir, pairs_file, "run", Watch(fail_in=1), ReportCallback())
    assert rounds_in(Path("run/report.html").read_text()) == 1
    with pytest.raises(RuntimeError, match="the lights went out"):
        fit(tiny_model_dir, pairs_file, "early", ReportCallback(), Watch(fail_in=0))
    assert not Path("early/report.html").exists()


@pytest.mark.usefixtures("real_pictures")
def test_a_resumed_run_tells_of_the_rounds_before_the_break(tiny_model_dir, pairs_file):
    with pytest.raises(RuntimeError, match="the lights went out"):
        fit(tiny_model_dir, pairs_file, "run", Watch(fail_in=1))  # a run from before the callback
    assert not Path("run/rounds/0/report.json").exists()
    seed_everything(0, verbose=False)
    run = trainer("run", evolution(), ReportCallback())
    run.fit(module(tiny_model_dir), data(pairs_file), ckpt_path="run/checkpoints/last.ckpt", weights_only=True)
    assert rounds_in(Path("run/report.html").read_text()) == 2
    assert notes_of("run", 0)["cards"]["most"]


def test_more_data_for_a_finished_run_leaves_the_notes_of_its_rounds_alone(fitted, tiny_model_dir, pairs_file):
    rows = [{"prompt": f"Say {i}.", "response_a": f"{i}", "response_b": f"{i + 1}, so"} for i in range(12)]
    Path("more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seed_everything(0, verbose=False)
    run = trainer("on", evolution(), ReportCallback())
    pairs = data(pairs_file, new_data_path="more.jsonl")
    run.fit(module(tiny_model_dir), pairs, ckpt_path="run/checkpoints/last.ckpt")
    assert rounds_in(Path("on/report.html").read_text()) == len(read_csv("on/rounds.csv")) == 3
    assert notes_of("on", 1) == notes_of("run", 1)
    assert notes_of("on", 2)["pairs"]["pool"] == notes_of("run", 1)["pairs"]["pool"] + 12


@pytest.mark.parametrize(("zero", "fn"), [(False, "fit"), (True, "test")])
def test_only_rank_zero_writes_and_only_in_fit(fitted, zero, fn):
    class Elsewhere:
        callbacks, is_global_zero, default_root_dir = [fitted[1]], zero, "elsewhere"
        state = type("State", (), {"fn": fn})

    ReportCallback().on_exception(Elsewhere(), fitted[0], RuntimeError())
    assert not Path("elsewhere").exists()


def test_a_page_that_cannot_be_written_is_a_warning(tiny_model_dir, pairs_file, monkeypatch, capsys):
    def fail(*args):
        raise OSError("no room\non the disk")

    monkeypatch.setattr(ser_lightning.report.page, "write_report", fail)
    with pytest.warns(UserWarning, match=r"^report: not written \(OSError: no room on the disk\)$"):
        _, callback = fit(tiny_model_dir, pairs_file, "run", ReportCallback())
    assert callback.state.finished
    assert "Report:" not in capsys.readouterr().out


def test_labels_are_counted_and_baselines_are_those_of_the_test_pairs(fitted, tiny_model_dir, pairs_file):
    noted, pairs = notes_of("run", 1), data(pairs_file)
    pairs.tokenizer = module(tiny_model_dir).tokenizer
    pairs.prepare_data()
    pairs.setup("fit")
    sizes = {split: len(pairs.pair_ids(split)) for split in ("seed", "pool", "val", "test")}
    assert noted["pairs"] == sizes
    row = read_csv("run/rounds.csv")[1]
    counted = {"pseudo_label_accuracy": int(row["kept"]), "pool_accuracy": sizes["pool"]}
    assert noted["labels"] == {**counted, "seed_oof_accuracy": sizes["seed"], "test_accuracy": sizes["test"]}
    assert noted["effective_labels"].keys() == noted["labels"].keys()
    assert all(0 < noted["effective_labels"][name] <= count for name, count in noted["labels"].items())
    ids, target = pairs.test_labels()
    found = read_test_scores(round_files("run", 1).test_scores)
    margin = dict(zip(found["pair_id"].tolist(), (found["reward_a"] - found["reward_b"]).tolist(), strict=True))
    credit = half_credit(torch.tensor([margin[pair] for pair in ids.tolist()]), target)
    assert noted["effective_labels"]["test_accuracy"] == pytest.approx(effective_pairs(credit, pairs.dialogues(ids)))
    ids = pairs.pair_ids("test")
    longer = (pairs.num_tokens(ids)[:, 0] > pairs.num_tokens(ids)[:, 1]).float()
    tie = pairs.num_tokens(ids)[:, 0] == pairs.num_tokens(ids)[:, 1]
    known, right = pairs.held_out_labels("test").count_right(ids, torch.where(tie, 0.5, longer))
    assert noted["baselines"]["longer"] == pytest.approx(right / known)
    assert set(noted["baselines"]) == {"longer", "bag_of_words"}


def test_the_bins_give_the_calibration_error_of_the_round(fitted):
    for number, row in enumerate(read_csv("run/rounds.csv")):
        bins = notes_of("run", number)["reliability"]
        total = sum(b["pairs"] for b in bins)
        error = sum(abs(b["right"] - b["pairs"] * b["confidence"]) for b in bins) / total
        assert error == pytest.approx(float(row["calibration_error"]), abs=1e-5)


@pytest.mark.usefixtures("real_pictures")
def test_without_folds_there_is_no_reliability_and_still_a_page(tiny_model_dir, pairs_file):
    fit(tiny_model_dir, pairs_file, "run", ReportCallback(), folds=0)
    assert notes_of("run", 1)["reliability"] == []
    assert rounds_in(Path("run/report.html").read_text()) == 2


def test_cards_say_nothing_of_the_hidden_labels(fitted, tiny_model_dir, pairs_file):
    pairs = data(pairs_file)
    pairs.tokenizer = module(tiny_model_dir).tokenizer
    pairs.prepare_data()
    pairs.setup("fit")
    pool = {p.prompt[-1]["content"] for p in pairs.lookup(pairs.pair_ids("pool"))}
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    turned = [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} if r["prompt"] in pool else r for r in rows]
    Path("turned.jsonl").write_text("".join(json.dumps(r) + "\n" for r in turned))
    fit(tiny_model_dir, Path("turned.jsonl"), "turned", ReportCallback())
    for number in (0, 1):
        one, other = notes_of("run", number), notes_of("turned", number)
        assert len(one["cards"]["most"]) == 5
        assert [one[key] for key in ("cards", "length", "reliability", "labels")] == [
            other[key] for key in ("cards", "length", "reliability", "labels")
        ]


# Policies


@pytest.mark.usefixtures("real_pictures")
def test_a_policy_has_its_page_and_the_next_commands_at_the_end_of_fit(tiny_model_dir, pairs_file, capsys):
    flags = sft_flags(tiny_model_dir, pairs_file, "lora")
    assert main(["fit", *flags, "--run_dir=run", "--trainer.log_every_n_steps=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    last = lines.index("Report: run/report.html")
    assert lines[last + 1] == "What to do with it:"
    assert "The training loss went from" in Path("run/report.html").read_text()
    commands = [shlex.split(line) for line in lines[last + 2 :] if not line.startswith("  #")]
    assert [command[3] for command in commands] == ["fit", "predict", "export"]
    # They work as they stand, on this policy and these pairs.
    words = [word.replace("RM_RUN", "ser_lightning.gold_scores") for word in commands[0][4:]]
    assert main(["plan", *words, "--model.judge=null", *QUIET]) == 0
    more = ["--run_dir=pool", "--data.predict_split=val", "--model.sampling.max_new_tokens=2", *QUIET]
    assert main(["predict", *commands[1][4:], *more]) == 0 and Path("pool/pool.jsonl").is_file()
    assert main(["export", *commands[2][4:]]) == 0 and Path("run/export/config.json").is_file()


def test_a_limit_that_ends_a_run_before_its_evolution_is_said_once(tiny_model_dir, pairs_file):
    """Three epochs are round 0, and two more the folds of round 1."""
    with pytest.warns(UserWarning, match="evolution: ended") as said:
        trainer("run", ReportCallback(), evolution(), max_epochs=5).fit(module(tiny_model_dir), data(pairs_file))
    [line] = [text for one in said if (text := str(one.message)).startswith("evolution:")]
    assert line.startswith("evolution: ended in round 1, which is not finished, by trainer.max_epochs")
    assert [row["round"] for row in read_csv("run/rounds.csv")] == ["0"]
    with pytest.warns(UserWarning, match="evolution: ended in round 0"):
        trainer("other", evolution(), max_epochs=0).fit(module(tiny_model_dir), data(pairs_file))
    assert "The run was ended by a limit or a callback and has not finished." in Path("run/report.html").read_text()


def test_the_notes_of_a_round_bring_no_warning_of_torch(fitted, tiny_model_dir, pairs_file, recwarn):
    pairs = data(pairs_file)
    pairs.tokenizer = module(tiny_model_dir).tokenizer
    pairs.prepare_data()
    pairs.setup("fit")
    torch.set_warn_always(True)  # it warns of an array that is not writable once in a process
    try:
        round_notes(pairs, Path("run"), 1, fitted[1].state.seed_scores[1])
    finally:
        torch.set_warn_always(False)
    assert not [one for one in recwarn if "writable" in str(one.message)]


def test_a_policy_that_is_broken_off_has_a_page_that_says_so(tiny_model_dir, pairs_file):
    class Fails(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == self.step:
                raise RuntimeError("the lights went out")

    def run(step, name):
        callback = Fails()
        callback.step = step
        loggers = {"logger": [MetricsFile(Path(name, "metrics.csv"))], "log_every_n_steps": 1}
        seed_everything(0, verbose=False)
        with pytest.raises(RuntimeError, match="lights"):
            trainer(name, ReportCallback(), callback, max_epochs=1, **loggers).fit(
                sft(tiny_model_dir), responses(pairs_file)
            )
        return Path(name, "report.html")

    config = {"model": {"class_path": "ser_lightning.SFTModule", "init_args": {"backbone": {"path": "tiny"}}}}
    for name in ("late", "early"):
        Path(name).mkdir()
        Path(name, "config.yaml").write_text(json.dumps(config))
    assert "The run was ended by an error and has not finished." in run(2, "late").read_text()
    assert not run(0, "early").exists()
