import io
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from scipy import stats
from torch.utils.data import DataLoader

from ser_lightning.callbacks import policy_watch
from ser_lightning.callbacks.policy_watch import (
    BestStep,
    PolicyWatch,
    confidence,
    overoptimisation,
    step_row,
    steps_table,
)
from ser_lightning.errors import UserError
from ser_lightning.records import Answers
from tests.helpers import read_csv
from tests.helpers import trainer as real_trainer

COLUMNS = (
    "step,reward,reward_low,reward_high,judge_score,judge_score_low,judge_score_high,kl,length,eos_rate,win_rate,win_rate_low,win_rate_high,"
    "repetition,distinct_2"
)
NUM_PROMPTS = 60


def answers(reward, judge=None, text="fine", kl=0.0):
    """Answers to as many prompts as there are rewards."""
    reward = torch.as_tensor(reward, dtype=torch.float32)
    n = len(reward)
    return Answers(
        prompt_id=torch.arange(n),
        prompts=[f"prompt {i}" for i in range(n)],
        responses=[f"{text} {i}" for i in range(n)],
        reward=reward,
        judge=None if judge is None else torch.as_tensor(judge, dtype=torch.float32),
        kl=torch.full((n,), kl),
        num_tokens=torch.arange(n) + 1,
        has_ended=torch.arange(n) % 4 != 0,
    )


def drawn(reward, judge, n=NUM_PROMPTS):
    """Answers whose rewards and judgements scatter by 1 around these means."""
    return answers(torch.randn(n) + reward, None if judge is None else torch.randn(n) + judge)


def fake_trainer(folder=".", **metrics):
    return SimpleNamespace(
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        is_global_zero=True,
        default_root_dir=str(folder),
        callback_metrics={f"train/{k}": torch.tensor(v) for k, v in metrics.items()},
        loggers=[],
        should_stop=False,
    )


def watch(callback, trainer, start, *steps):
    """Validate at steps 10, 20, ...; None leaves one out."""
    module = SimpleNamespace(answers=start, start_answers=start, rl_step=0)
    callback.on_train_epoch_start(trainer, module)
    for i, now in enumerate(steps):
        module.answers, module.rl_step = now, 10 * (i + 1)
        if now is not None:
            callback.on_validation_end(trainer, module)
    return callback


def read_steps(folder="."):
    return read_csv(f"{folder}/steps.csv")


def test_a_row_holds_what_hand_and_scipy_say():
    reward, judge = torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([0.0, 1.0, 1.0, 2.0])
    now = answers(reward, judge, "a b c a b c", kl=2.5)
    start = answers(reward + 9, [1.0, 1.0, 0.0, 0.0])
    watch(PolicyWatch(), fake_trainer(reward=0.25, policy_loss=-1.5), start, now)
    first, row = read_steps()
    assert ",".join(row) == COLUMNS + ",train_reward,train_policy_loss"
    assert (row["step"], row["reward"], row["judge_score"], row["kl"], row["length"]) == ("10", "3", "1", "2.5", "2.5")
    assert (row["eos_rate"], row["train_reward"], row["train_policy_loss"]) == ("0.75", "0.25", "-1.5")
    for name, values in (("reward", reward), ("judge_score", judge)):
        oracle = stats.ttest_1samp(values.numpy(), 0).confidence_interval()
        assert [float(row[f"{name}_low"]), float(row[f"{name}_high"])] == pytest.approx(list(oracle), rel=1e-5)
    assert float(row["win_rate"]) == 2.5 / 4  # by the judge: one lost, one tied, two won
    for end in (float(row["win_rate_low"]), float(row["win_rate_high"])):  # Wilson's: a share that is just not refuted
        assert abs(2.5 / 4 - end) == pytest.approx(stats.norm.ppf(0.975) * (end * (1 - end) / 4) ** 0.5, rel=1e-4)
    assert float(row["repetition"]) == pytest.approx(1 / 5)  # abc bca cab abc bc0
    assert float(row["distinct_2"]) == pytest.approx((3 + 4) / 24, rel=1e-5)  # ab bc ca | c0 c1 c2 c3, of 4 * 6
    assert (first["step"], first["train_reward"], first["reward"]) == ("0", "", "12")


def test_without_a_judge_its_columns_are_empty_and_the_reward_decides_who_wins(caplog):
    with caplog.at_level("INFO"):
        watch(PolicyWatch(), fake_trainer(), drawn(0, None), drawn(9, None))
    assert "model.judge" in caplog.text
    row = read_steps()[-1]
    assert (row["judge_score"], row["judge_score_low"], row["judge_score_high"], row["win_rate"]) == ("", "", "", "1")


def test_the_judge_is_missed_once_and_only_by_who_asks_for_the_guard(caplog):
    with caplog.at_level("INFO"):
        watch(PolicyWatch("ignore"), fake_trainer(), drawn(0, None), drawn(0, None))
        watch(PolicyWatch("stop"), fake_trainer(), drawn(0, 0), drawn(0, 0))
        assert "model.judge" not in caplog.text
        watch(PolicyWatch("stop"), fake_trainer(), drawn(0, None), drawn(0, None), drawn(0, None))
    assert caplog.text.count("model.judge") == 1


def test_the_starting_policy_is_written_before_the_first_step_or_else_at_the_first_validation():
    start, now = drawn(0, 0), drawn(1, 1)
    watch(PolicyWatch(), fake_trainer("early"), start)
    assert [row["step"] for row in read_steps("early")] == ["0"]
    callback, module = PolicyWatch(), SimpleNamespace(answers=None, start_answers=None, rl_step=0)
    callback.on_train_epoch_start(fake_trainer("late"), module)
    assert not callback.rows
    module.answers, module.start_answers, module.rl_step = now, start, 10
    callback.on_validation_end(fake_trainer("late"), module)
    assert [row["step"] for row in read_steps("late")] == ["0", "10"]
    assert read_steps("late")[0] == read_steps("early")[0]


def test_nothing_is_written_by_other_ranks_by_sanity_checks_and_outside_fit(tmp_path):
    for change in ({"sanity_checking": True}, {"state": SimpleNamespace(fn="validate")}, {"is_global_zero": False}):
        trainer = fake_trainer()
        vars(trainer).update(change)
        callback, module = PolicyWatch(), SimpleNamespace(answers=drawn(0, 0), start_answers=drawn(0, 0), rl_step=10)
        callback.on_validation_end(trainer, module)
        callback.on_train_end(trainer, module)
        assert len(callback.rows) == (2 if "is_global_zero" in change else 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_samples", [0, 3, 99])
def test_samples_stand_side_by_side(num_samples, tmp_path):
    start, now = answers([0.0, 1, 2, 3, 4], [5.0] * 5, "old"), answers([1.0, 2, 3, 4, 5], text="nouveau, né\n")
    watch(PolicyWatch(num_samples=num_samples), fake_trainer(), start, now)
    file = tmp_path / "samples" / "10.jsonl"
    assert file.exists() == (num_samples > 0)
    if num_samples:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(rows) == min(num_samples, 5)
        assert rows[1] == {
            "prompt": "prompt 1", "before": "old 1", "after": "nouveau, né\n 1", "reward_before": 1.0,
            "reward_after": 2.0, "judge_score_before": 5.0, "judge_score_after": None,
        }  # fmt: skip


def over_optimised(n=NUM_PROMPTS):
    """The reward rises throughout; the judge rises, then falls."""
    return [drawn(reward, judge, n) for reward, judge in ((0, 0), (2, 2), (4, 0.5), (6, 0))]


def test_the_guard_warns_once_and_names_the_best_step():
    trainer = fake_trainer()
    with pytest.warns(UserWarning, match="over-optimised") as caught:
        watch(PolicyWatch(), trainer, *over_optimised())
    assert len(caught) == 1 and not trainer.should_stop
    text = str(caught[0].message)
    assert "over-optimised at step 20: since step 10 " in text and "checkpoint of about step 10" in text


def test_the_guard_warns_anew_after_a_new_best_step():
    later = [drawn(8, 4), drawn(10, 2)]
    with pytest.warns(UserWarning, match="over-optimised") as caught:
        watch(PolicyWatch(), fake_trainer(), *over_optimised(), *later)
    assert ["since step 10" in str(caught[0].message), "since step 40" in str(caught[1].message)] == [True, True]
    assert len(caught) == 2


def test_the_guard_stops_where_it_is_told_to():
    trainer = fake_trainer()
    with pytest.warns(UserWarning, match="stops here"):
        watch(PolicyWatch("stop"), trainer, *over_optimised()[:3])
    assert trainer.should_stop


@pytest.mark.parametrize(
    ("mode", "num_prompts", "means"),
    [
        ("ignore", NUM_PROMPTS, [(0, 0), (2, 2), (4, 0.5), (6, 0)]),
        ("stop", NUM_PROMPTS, [(0, None), (2, None), (4, None)]),  # nobody else judges
        ("stop", NUM_PROMPTS, [(0, 0), (2, 2), (1, 0)]),  # both fall: not a gamed reward
        ("stop", NUM_PROMPTS, [(0, 0), (2, 2), (4, 4), (6, 6)]),  # both rise
        ("stop", 4, [(0, 0), (2, 0.2), (4, 0)]),  # too few prompts to tell
    ],
)
def test_the_guard_is_silent_otherwise(mode, num_prompts, means):
    trainer = fake_trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch(PolicyWatch(mode), trainer, *(drawn(reward, judge, num_prompts) for reward, judge in means))
    assert not trainer.should_stop


def test_chance_stops_few_runs_however_long():
    """A judge that only scatters; plain 95 % intervals against the best step would stop most of these runs."""
    stopped = plain = 0
    for _ in range(40):
        judged = [drawn(step, 0, n=30) for step in range(21)]
        best, is_stopped, is_plain = judged[0], False, False
        for step, now in enumerate(judged[1:], 1):
            kept = BestStep(0, best.prompt_id, best.reward, best.judge)
            is_stopped |= overoptimisation(now, kept, step) is not None
            is_plain |= bool(now.judge.mean() < best.judge.mean()) and stats.ttest_rel(now.judge, best.judge)[1] < 0.05
            best = max(best, now, key=lambda a: float(a.judge.mean()))
        stopped, plain = stopped + is_stopped, plain + is_plain
    assert stopped <= 6 and plain >= 20


def test_at_most_one_run_in_twenty_is_accused_by_chance():
    assert sum(k * (1 - confidence(k)) / 2 for k in range(1, 5000)) == pytest.approx(0.05, abs=1e-5)
    draw, num_runs, num_prompts = np.random.default_rng(0), 1000, 30
    best, is_accused = draw.standard_normal((num_runs, num_prompts)), np.zeros(num_runs, bool)
    for step in range(1, 200):
        now = draw.standard_normal((num_runs, num_prompts))
        change = now - best
        t = change.mean(1) / change.std(1, ddof=1) * num_prompts**0.5
        is_accused |= t < stats.t.ppf((1 - confidence(step)) / 2, num_prompts - 1)
        best = np.where(change.mean(1, keepdims=True) > 0, now, best)
    assert 30 <= is_accused.sum() <= 60  # 1 - 0.05 / (k (k + 1)), as if the best were one step, accuses about 75


def test_the_interval_of_the_guard_is_scipys_at_its_level():
    then, now = drawn(0, 3), drawn(1, 0)
    change = overoptimisation(now, BestStep(0, then.prompt_id, then.reward, then.judge), num_earlier=4)
    oracle = stats.ttest_rel(now.judge.double(), then.judge.double()).confidence_interval(1 - 0.1 / 80)
    assert change[1:] == pytest.approx((oracle.low, oracle.high), rel=1e-6)


def test_other_prompts_are_not_compared_with():
    start, best, last = drawn(0, 0), drawn(2, 5), drawn(4, 0)
    other = Answers(**{**vars(last), "prompt_id": last.prompt_id + 1000})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback = watch(PolicyWatch(), fake_trainer(), start, best, other)
    assert callback.best.step == 20


def test_a_judge_may_come_later_and_its_only_step_may_come_twice():
    first, again = drawn(0, 5), drawn(2, 0)
    callback = watch(PolicyWatch(), fake_trainer(), drawn(0, None), first)
    watch(callback, fake_trainer(), drawn(0, None), again)
    assert callback.best.judge is again.judge and [row.step for row in callback.rows] == [0, 10]


def test_a_figure_logged_by_step_and_epoch_is_one_column():
    metrics = {"train/kl": 1.0, "train/kl_step": 1.0, "train/kl_epoch": 2.0, "train/first_step": 3.0, "val/kl": 4.0}
    assert step_row(1, drawn(0, 0), drawn(0, 0), metrics).train == {"train_kl": 1.0, "train_first_step": 3.0}


@pytest.mark.parametrize("mode", ["warn", "stop"])
def test_a_resumed_run_leaves_the_same_files(mode, tmp_path):
    steps = over_optimised()
    with pytest.warns(UserWarning, match="over-optimised") as caught:
        straight = watch(PolicyWatch(mode), fake_trainer("straight", kl=0.1), *steps)
    assert len(caught) == 1
    for break_after in range(len(steps)):
        folder = f"broken{break_after}"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            first = watch(PolicyWatch(mode), fake_trainer(folder, kl=0.1), *steps[: break_after + 1])
            torch.save(first.state_dict(), "state.pt")
            # The process lives on for a while: what it writes then is written again.
            watch(first, fake_trainer(folder, kl=0.1), steps[0], *[None] * break_after, *steps[break_after + 1 :][:1])
            told_before = len(caught)
            second = PolicyWatch(mode)
            second.load_state_dict(torch.load("state.pt", weights_only=True))
            # It is also resumed from before a validation that the state has seen.
            seen = max(0, break_after - 1)
            watch(second, fake_trainer(folder, kl=0.1), steps[0], *[None] * seen, *steps[1 + seen :])
        assert (tmp_path / folder / "steps.csv").read_bytes() == (tmp_path / "straight" / "steps.csv").read_bytes()
        assert (second.best.step, second.rows) == (straight.best.step, straight.rows)
        assert len(caught) - told_before == (break_after < 2)  # step 20 is where it is told


def test_loggers_get_the_held_out_figures():
    logged = []
    trainer = fake_trainer(reward=1.0)
    trainer.loggers = [SimpleNamespace(log_metrics=lambda metrics, step: logged.append((step, metrics)))]
    watch(PolicyWatch(), trainer, answers([0.0, 0.0]), answers([1.0, 2.0], kl=3.0))
    assert [step for step, _ in logged] == [0, 10]
    assert logged[-1][1]["val/reward"] == 1.5 and logged[-1][1]["val/kl"] == 3.0
    assert set(logged[-1][1]) == {f"val/{n}" for n in COLUMNS.split(",") if n != "step" and "judge_score" not in n}


def test_the_table_shows_first_best_and_last_in_80_columns(capsys):
    callback = watch(PolicyWatch("ignore"), fake_trainer(), *(drawn(-100 + i, -1000 - abs(i - 2)) for i in range(5)))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(steps_table(callback.rows, callback.best.step))
    text = console.export_text()
    assert [line.split()[0] for line in text.splitlines()[3:]] == ["0", "*", "40"]
    assert "…" not in text and "* 20" in text and "-1000." in text
    callback.on_train_end(fake_trainer(), None)
    assert "second judge likes best" in capsys.readouterr().out


def test_without_a_judge_no_step_is_best(capsys):
    callback = watch(PolicyWatch("ignore"), fake_trainer(), drawn(0, None), drawn(1, None))
    callback.on_train_end(fake_trainer(), None)
    assert "*" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "words"),
    [({"on_overoptimised": "shout"}, "need warn, stop or ignore"), ({"num_samples": -1}, "need 0 or more")],
)
def test_wrong_arguments_are_named(setting, words):
    with pytest.raises(UserError, match=words) as error:
        PolicyWatch(**setting)
    assert next(iter(setting)) in str(error.value)


class TinyPolicy(LightningModule):
    """One weight, one step a batch, and answers that are crafted."""

    def __init__(self, told):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.told, self.answers, self.start_answers = told, None, None
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.long))

    @property
    def rl_step(self):
        return int(self.steps_done)

    def train_dataloader(self):
        return DataLoader(range(2))

    val_dataloader = train_dataloader

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_train_start(self):
        self.start_answers = self.told[0]

    def training_step(self, batch, batch_idx):
        self.steps_done += 1
        self.log("train/kl", float(self.steps_done))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        self.answers = self.told[self.rl_step // 2]


class StopAfter(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == self.epoch


def test_a_real_fit_writes_logs_resumes_and_stops():
    told = [*over_optimised(), drawn(9, 0)]
    settings = {"max_epochs": 4, "num_sanity_val_steps": 1, "reload_dataloaders_every_n_epochs": 0}
    run = real_trainer("whole", PolicyWatch(), logger=CSVLogger("whole", "", ""), log_every_n_steps=1, **settings)
    with pytest.warns(UserWarning, match="over-optimised at step 4"):
        run.fit(TinyPolicy(told))
    rows = read_steps("whole")
    assert [row["step"] for row in rows] == ["0", "2", "4", "6", "8"]
    assert [row["train_kl"] for row in rows] == ["", "2", "4", "6", "8"]  # of the step just before
    logged = [(row["step"], row["val/judge_score"]) for row in read_csv("whole/metrics.csv") if row["val/judge_score"]]
    assert np.array(logged, float) == pytest.approx(
        np.array([[row["step"], row["judge_score"]] for row in rows], float), rel=1e-5
    )

    real_trainer("broken", PolicyWatch(), StopAfter(0), **settings).fit(TinyPolicy(told))
    resumed = real_trainer("broken", PolicyWatch(), **settings)
    with pytest.warns(UserWarning, match="over-optimised at step 4"):
        resumed.fit(TinyPolicy(told), ckpt_path="broken/checkpoints/last.ckpt", weights_only=True)
    assert read_steps("broken") == rows

    with pytest.warns(UserWarning, match="stops here"):
        real_trainer("stopped", PolicyWatch("stop"), **settings).fit(TinyPolicy(told))
    assert read_steps("stopped") == rows[:3]


def test_columns_are_those_that_are_promised():
    assert ",".join(policy_watch.COLUMNS) == COLUMNS
    assert step_row(0, drawn(0, 0), drawn(0, 0)).train == {}
