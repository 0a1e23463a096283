"""More data for a finished run: its record goes on, only what is new is encoded and scored, and drift shows."""

import contextlib
import json
import math
import random
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from scipy.stats import ks_2samp

from ser_lightning.__main__ import main
from ser_lightning.callbacks.continuation import drift_figures, warnings_of
from ser_lightning.callbacks.state import EvolutionState, seed_credits
from ser_lightning.errors import NothingToDo, UserError
from ser_lightning.evolution.selection import CalibratedRule, SelectionContext, SelectionResult, TopShareRule
from ser_lightning.records import PairScores
from ser_lightning.runs.weights import read_weights
from tests.helpers import data, equal, evolution, fit, module, read_csv, trainer, weights

LAST = "old/checkpoints/last.ckpt"


class Watcher(Callback):
    """Pairs that were scored before the first new batch, and the pairs of every epoch."""

    def __init__(self, crash_at=None):
        self.scored, self.epochs, self.crash_at, self.started = [], [], crash_at, False

    def on_fit_start(self, trainer, pl_module):
        step = pl_module.predict_step

        def watched(batch, batch_idx=0):
            if not self.started:
                self.scored += batch.pair_id.tolist()
            return step(batch, batch_idx)

        pl_module.predict_step = watched

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append((trainer.datamodule.phase, {}))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.started = True
        if len(self.epochs) == self.crash_at and batch_idx == 1:
            raise KeyboardInterrupt
        for micro in batch:
            self.epochs[-1][1].update(zip(micro.pair_id.tolist(), micro.target.tolist(), strict=True))


@pytest.fixture
def more(tmp_path):
    """12 pairs with a label and 20 without."""
    generator = random.Random(1)
    lines = []
    for number in range(100, 132):
        right, wrong = f"It is {2 * number}.", f"It is {2 * number + generator.randint(1, 9)}, I think."
        names = ("chosen", "rejected") if number < 112 else ("response_a", "response_b")
        lines.append({"prompt": f"What is {number} plus {number}?", **dict(zip(names, (right, wrong), strict=True))})
    path = tmp_path / "more.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def go_on(model_dir, pairs_file, more, run, *extra, ckpt_path=LAST, reading="last", **kwargs):
    seed_everything(0, verbose=False)
    model, callback = module(model_dir, reading=reading), evolution(**kwargs)
    datamodule = data(pairs_file, new_data_path=more)
    trainer(run, callback, *extra).fit(model, datamodule, ckpt_path=ckpt_path)
    return model, callback, datamodule


def rows(run):
    return read_csv(f"{run}/rounds.csv")


def _fitted(model_dir, pairs_file, folder, **kwargs):
    with contextlib.chdir(folder):
        return folder / "old", *fit(model_dir, pairs_file, "old", **kwargs)


@pytest.fixture(scope="module")
def usual_run(tiny_model_dir, pairs_file, tmp_path_factory):
    return _fitted(tiny_model_dir, pairs_file, tmp_path_factory.mktemp("usual"))


@pytest.fixture
def old(usual_run):
    """A finished run in the folder `old`."""
    shutil.copytree(usual_run[0], "old")


HALF = {"rule": TopShareRule(0.5, 0.0)}


@pytest.fixture(scope="module")
def half_run(tiny_model_dir, pairs_file, tmp_path_factory):
    return _fitted(tiny_model_dir, pairs_file, tmp_path_factory.mktemp("half"), **HALF)


@pytest.fixture
def half(half_run):
    """Model and callback of a run with `HALF`, which is in the folder `old`."""
    shutil.copytree(half_run[0], "old")
    return half_run[1:]


@pytest.mark.usefixtures("old")
def test_the_record_goes_on_and_only_new_pairs_are_scored(tiny_model_dir, pairs_file, more):
    watcher = Watcher()
    _, callback, datamodule = go_on(tiny_model_dir, pairs_file, more, "new", watcher)
    arrived = {name: set(datamodule.pair_ids(f"arrived_{name}").tolist()) for name in ("seed", "pool")}
    assert {name: len(ids) for name, ids in arrived.items()} == {"seed": 12, "pool": 20}
    assert sorted(watcher.scored) == sorted([*arrived["seed"], *arrived["pool"], *datamodule.pair_ids("test").tolist()])
    old, new = rows("old"), rows("new")
    assert [int(row["round"]) for row in new] == [0, 1, 2]
    assert [{**row, "delivered": ""} for row in new[:2]] == [{**row, "delivered": ""} for row in old]
    assert int(new[2]["scored"]) == int(old[0]["scored"]) + 20
    assert new[2]["forecast_accuracy"] == new[2]["predicted_last_round"] == "nan"  # forecasts begin anew
    for name in ("audit.parquet", "model.pt"):
        assert Path("new/rounds/0", name).read_bytes() == Path("old/rounds/0", name).read_bytes()
    assert [(phase.round, phase.fold) for phase, _ in watcher.epochs] == [(2, 0), (2, 1), (2, None)]
    assert arrived["seed"] < set(watcher.epochs[-1][1])
    assert set(callback.state.seed_scores[-1].pair_id.tolist()) == set(datamodule.pair_ids("seed").tolist())
    assert arrived["seed"] < set(datamodule.pair_ids("seed").tolist())
    assert callback.state.finished


def test_the_delivered_model_labels_old_and_new_pairs_alike(tiny_model_dir, pairs_file, more, half):
    """The oracle scores the whole pool with the delivered weights and keeps the surer half by itself."""
    (model, _), watcher = half, Watcher()
    _, _, datamodule = go_on(tiny_model_dir, pairs_file, more, "new", watcher, **HALF)
    model.eval()
    margins = {}
    with torch.no_grad():
        for batch in datamodule.scoring_dataloader("pool"):
            margins |= zip(batch.pair_id.tolist(), model(batch).margin.tolist(), strict=True)
    surest = sorted(margins, key=lambda i: -abs(margins[i]))[: round(len(margins) / 2)]
    trained = {i: target for i, target in watcher.epochs[-1][1].items() if i in margins}
    assert trained == {i: float(margins[i] > 0) for i in surest}


def test_the_question_of_judge_makes_no_pair_longer_that_arrives(tiny_model_dir, pairs_file, more):
    """Earlier pairs have their length from the data, those that arrive from a batch that the model has read."""
    seed_everything(0, verbose=False)
    trainer("old", evolution()).fit(module(tiny_model_dir, reading="judge"), data(pairs_file))
    _, _, datamodule = go_on(tiny_model_dir, pairs_file, more, "new", reading="judge")
    figures = json.loads(Path("new/rounds/2/drift.json").read_text())
    mean = datamodule.num_tokens(datamodule.pair_ids("arrived_pool")).double().mean()
    assert figures["new_tokens"] == pytest.approx(float(mean))


def test_a_label_for_a_pair_that_the_model_had_labelled_is_no_evidence(tiny_model_dir, pairs_file, tmp_path, half):
    selected = {i for selection in half[1].state.history for i in selection.pair_id.tolist()}
    datamodule = data(pairs_file)
    datamodule.tokenizer = module(tiny_model_dir).tokenizer
    datamodule.prepare_data()
    datamodule.setup()
    others = [i for i in datamodule.pair_ids("pool").tolist() if i not in selected]
    asked = [*sorted(selected)[:6], *others[:5]]
    rows = [
        {"prompt": p.prompt, "response_a": p.response_a, "response_b": p.response_b, "label": n % 2}
        for n, p in enumerate(datamodule.lookup(asked))
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, _, new = go_on(tiny_model_dir, pairs_file, str(path), "new", **HALF)
    assert set(new.pair_ids("arrived_seed").tolist()) == set(asked)
    assert json.loads(Path("new/rounds/2/drift.json").read_text())["new_labels"] == len(others[:5])


def test_what_goes_on_begins_with_the_weights_of_the_delivered_round(tiny_model_dir, pairs_file, more, monkeypatch):
    settings = {"rule": TopShareRule(0.5, 0.0), "restart": "nothing"}
    with monkeypatch.context() as patch:
        patch.setattr("ser_lightning.callbacks.evolution.choose_round", lambda credits, barred: 0)
        fit(tiny_model_dir, pairs_file, "old", **settings)
    assert [row["delivered"] for row in rows("old")] == ["1", "0"]
    read = []

    def noted(file):
        read.append(file.parent.name)
        return read_weights(file)

    monkeypatch.setattr("ser_lightning.callbacks.evolution.read_weights", noted)
    go_on(tiny_model_dir, pairs_file, more, "new", **settings)
    assert set(read) == {"0"}


@pytest.mark.slow
@pytest.mark.parametrize("restart", ["weights", "nothing"])
def test_a_continued_run_survives_a_crash(tiny_model_dir, pairs_file, more, restart):
    settings = {"rule": CalibratedRule(min_change_share=0.0), "restart": restart, "max_rounds": 2}
    fit(tiny_model_dir, pairs_file, "old", **settings)
    unbroken, _, _ = go_on(tiny_model_dir, pairs_file, more, "unbroken", **settings)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        go_on(tiny_model_dir, pairs_file, more, "broken", Watcher(crash_at=3), **settings)
    again, _, _ = go_on(
        tiny_model_dir, pairs_file, more, "broken", ckpt_path="broken/checkpoints/last.ckpt", **settings
    )
    assert equal(weights(unbroken), weights(again))
    assert len(rows("broken")) == 5
    for a, b in zip(rows("unbroken"), rows("broken"), strict=True):
        assert {**a, "seconds": ""} == {**b, "seconds": ""}


@pytest.mark.usefixtures("old")
def test_a_finished_run_without_new_pairs_has_nothing_to_do(tiny_model_dir, pairs_file):
    with pytest.raises(NothingToDo, match="give new pairs with --data.new_data_path"):
        go_on(tiny_model_dir, pairs_file, [], "old")


@pytest.mark.usefixtures("old")
def test_pairs_whose_labels_nobody_filled_in_bring_nothing(tiny_model_dir, pairs_file):
    asked = [json.loads(line) for line in pairs_file.read_text().splitlines()[:9]]
    rows = [
        {"prompt": row["prompt"], "response_a": row["chosen"], "response_b": row["rejected"], "ser_label": None}
        for row in asked
    ]
    Path("to_label.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(NothingToDo, match="data.new_data_path has no pair or label that is new to it"):
        go_on(tiny_model_dir, pairs_file, "to_label.jsonl", "new")


def test_pairs_that_arrive_in_the_middle_of_a_run_have_to_wait(tiny_model_dir, pairs_file, more):
    seed_everything(0, verbose=False)
    trainer("old", evolution(), max_epochs=4).fit(module(tiny_model_dir), data(pairs_file))
    with pytest.raises(UserError, match="in the middle of a round; resume the run without them"):
        go_on(tiny_model_dir, pairs_file, more, "new")


@pytest.mark.usefixtures("old")
def test_a_checkpoint_without_its_rounds_is_refused(tiny_model_dir, pairs_file, more):
    Path("old/checkpoints/last.ckpt").rename("stray.ckpt")
    with pytest.raises(UserError, match="stray.ckpt, beside which there are no rounds"):
        go_on(tiny_model_dir, pairs_file, more, "new", ckpt_path="stray.ckpt")


def test_the_command_line_goes_on_from_an_earlier_run(tiny_fit, more, capsys):
    tiny_fit(name="old")
    before = {path: path.read_bytes() for path in Path("old").rglob("*") if path.is_file()}
    command = ["fit", f"--ckpt_path={LAST}", f"--data.new_data_path={more}"]
    assert main(command) == 2
    assert "new_data_path was None and is" in capsys.readouterr().err
    assert main([*command, "--run_dir=new"]) == 0
    said = capsys.readouterr().out
    assert "Drift: what arrived, seen by the delivered model" in said
    assert len(rows("new")) == 3
    figures = json.loads(Path("new/rounds/2/drift.json").read_text())
    assert (figures["new_pairs"], figures["new_labels"]) == (20, 12)
    assert any(row["drift/new_pairs"] == "20.0" for row in read_csv("new/metrics.csv"))
    assert {path: path.read_bytes() for path in Path("old").rglob("*") if path.is_file()} == before
    assert len(pq.read_table("new/rounds/2/audit.parquet")) == figures["old_pairs"] + 20
    assert main(["fit", "--run_dir=new", "--ckpt_path=auto"]) == 0
    assert "nothing to do: run: its evolution is finished" in capsys.readouterr().out
    assert main(["fit", "--run_dir=new", "--ckpt_path=last"]) == 2


def test_the_state_of_another_version_is_refused():
    state = EvolutionState().to_dict()
    assert EvolutionState.from_dict(state) == EvolutionState()
    for other in ({**state, "new": 1}, {k: v for k, v in state.items() if k != "rows"}):
        with pytest.raises(UserError, match="the state of another version"):
            EvolutionState.from_dict(other)


def scores(margin, first_id=0):
    n = len(margin)
    margin = torch.as_tensor(margin, dtype=torch.float32)
    return PairScores(torch.arange(first_id, first_id + n), margin, torch.zeros(n), torch.full((n,), 5), margin.long())


def test_drift_figures_are_those_of_scipy_and_of_hand():
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(80, generator=generator), 2 + torch.randn(40, generator=generator)
    pool = scores(torch.cat([old, new]))
    prob_a = torch.sigmoid(pool.margin)
    result = SelectionResult(prob_a, torch.arange(120) >= 60, 1, False, "")
    seed, fresh = scores([1, 1, 1, -1], 1000), scores([1.0] * 50, 2000)
    everything = PairScores(*(torch.cat([getattr(seed, k), getattr(fresh, k)]) for k in vars(seed)))
    context = SelectionContext(everything, torch.cat([torch.ones(4), (torch.arange(50) < 10).float()]))
    unseen = torch.randn(60, generator=generator)
    figures = drift_figures(scores(old), pool, result, context, fresh, scores(unseen))
    assert figures["margin_ks"] == pytest.approx(ks_2samp(unseen.abs().numpy(), new.abs().numpy()).statistic)
    tokens = (pool.tokens_a + pool.tokens_b).numpy()
    assert figures["tokens_ks"] == pytest.approx(ks_2samp(tokens[:80], tokens[80:]).statistic)
    for name, margin in (("old", old), ("new", new), ("unseen", unseen)):
        assert figures[f"{name}_margin"] == pytest.approx(float(margin.abs().mean()))
    assert (figures["old_pairs"], figures["new_pairs"]) == (80, 40)
    assert (figures["old_kept_share"], figures["new_kept_share"]) == (0.25, 1.0)
    assert figures["new_confidence"] == pytest.approx(float(torch.maximum(prob_a, 1 - prob_a)[80:].mean()))
    assert (figures["old_label_accuracy"], figures["new_label_accuracy"]) == pytest.approx((0.75, 0.2))
    by_chance = math.sqrt(-math.log(0.05 / 2) / 2)  # the leading term of Kolmogorov's distribution
    assert figures["tokens_ks_by_chance"] == pytest.approx(by_chance * (1 / 80 + 1 / 40) ** 0.5, rel=1e-4)
    assert figures["margin_ks_by_chance"] == pytest.approx(by_chance * (1 / 60 + 1 / 40) ** 0.5, rel=1e-4)
    said = " ".join(warnings_of(figures))
    assert "The margins of the arrived and of unseen pairs differ" in said and "right in 0.200" in said


def test_no_drift_is_said_as_well():
    margin = torch.randn(300, generator=torch.Generator().manual_seed(0))
    pool = scores(margin)
    result = SelectionResult(torch.sigmoid(margin), margin.abs() > 1, 1, False, "")
    nothing = scores([])
    figures = drift_figures(
        scores(margin[:200]), pool, result, SelectionContext(nothing, torch.empty(0)), nothing, nothing
    )
    assert "margin_ks" not in figures
    assert warnings_of(figures) == ["Nothing has drifted by more than chance explains."]


def test_credits_of_rounds_with_a_grown_seed_are_compared_on_the_pairs_that_all_have():
    first = PairScores(torch.tensor([7, 3]), torch.tensor([1.0, -1.0]), torch.zeros(2), *[torch.ones(2)] * 2)
    second = PairScores(torch.tensor([9, 7, 3]), torch.tensor([1.0, -1.0, 0.0]), torch.zeros(3), *[torch.ones(3)] * 2)
    found = seed_credits([first, second], torch.tensor([3, 7, 9]), torch.tensor([0.0, 1.0, 1.0]))
    assert [c.tolist() for c in found] == [[1.0, 1.0], [0.5, 0.0]]
