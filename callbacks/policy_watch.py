"""Watches the RL stage on held-out prompts: `steps.csv`, samples to read, and a guard against over-optimisation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.table import Table
from torch import Tensor, equal

from ser_lightning.errors import raise_problems
from ser_lightning.evaluation.response_stats import (
    Interval,
    distinct_n,
    mean_interval,
    paired_change,
    repetition,
    win_rate,
)
from ser_lightning.records import Answers
from ser_lightning.runs.files import SAMPLES, STEPS
from ser_lightning.utils.atomic import write_text_atomically
from ser_lightning.utils.terminal import new_table, say


class WatchedModule(Protocol):
    """What `PolicyWatch` reads of the module, on all ranks, when a validation of `fit` ends."""

    answers: Answers | None
    """Of the policy, to the held-out prompts; None without any."""
    start_answers: Answers | None
    """Of the policy that training began with, to the same prompts; None until they are sampled."""
    rl_step: int
    """Steps of the RL stage done so far."""


@dataclass(frozen=True)
class StepRow:
    """One line of `steps.csv`; step 0 is the starting policy. `docs/metrics.md` defines the columns."""

    step: int
    reward: float
    reward_low: float
    reward_high: float
    judge_score: float | None
    judge_score_low: float | None
    judge_score_high: float | None
    kl: float
    length: float
    eos_rate: float
    win_rate: float
    win_rate_low: float
    win_rate_high: float
    repetition: float
    distinct_2: float
    train: dict[str, float] = field(default_factory=dict)
    """Columns `train_...`, as many as the module has logged."""

    def figures(self) -> dict[str, float]:
        """What was measured on the held-out prompts, by logger names, `val/...`."""
        values = {name: getattr(self, name) for name in COLUMNS if name != "step"}
        return {f"val/{name}": value for name, value in values.items() if value is not None}


COLUMNS = tuple(f.name for f in fields(StepRow) if f.name != "train")
"""Columns of `steps.csv` that every run has."""


@dataclass(frozen=True)
class BestStep:
    """How the answers of the step that the second judge liked best were judged, prompt by prompt."""

    step: int
    prompt_id: Tensor
    """(N,) int64."""
    reward: Tensor
    """(N,) float32."""
    judge: Tensor
    """(N,) float32."""


class PolicyWatch(Callback):
    """Record the answers of the policy to held-out prompts, and warn when it begins to over-optimise its reward.

    Args:
        on_overoptimised: what to do when the reward has risen since the step that the second judge likes best while
            the judge has fallen by more than chance: `warn`, `stop` the training as well, or `ignore` it.
        num_samples: prompts whose answers are written to `samples/<step>.jsonl`, always the same ones; 0 for none.
    """

    def __init__(self, on_overoptimised: Literal["warn", "stop", "ignore"] = "warn", num_samples: int = 8) -> None:
        self.on_overoptimised, self.num_samples = on_overoptimised, num_samples
        raise_problems(self._problems())
        self.rows: list[StepRow] = []
        self.best: BestStep | None = None
        self._told_of_step: int | None = None  # the best step of the last warning

    def on_train_epoch_start(self, trainer: Trainer, pl_module: WatchedModule) -> None:
        """The row of the starting policy, where the module has asked it before training."""
        self._add_start(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: WatchedModule) -> None:
        """A row, samples, the loggers and the guard."""
        now, start, step = pl_module.answers, pl_module.start_answers, pl_module.rl_step
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or now is None or start is None:
            return
        self._add_start(trainer, pl_module)
        if step > 0:
            self._add(trainer, step_row(step, now, start, trainer.callback_metrics))
            if trainer.is_global_zero and self.num_samples:
                path = Path(trainer.default_root_dir) / SAMPLES / f"{step}.jsonl"
                write_samples(path, now, start, self.num_samples)
            self._guard(trainer, step, now)

    def on_train_end(self, trainer: Trainer, pl_module: WatchedModule) -> None:
        """The table of the steps that matter."""
        if trainer.is_global_zero and self.rows:
            print_steps(self.rows, None if self.best is None else self.best.step)

    def state_dict(self) -> dict[str, Any]:
        """Rows and the best step, as plain values and tensors."""
        return {
            "rows": [dict(vars(row)) for row in self.rows],
            "best": None if self.best is None else dict(vars(self.best)),
            "told_of_step": self._told_of_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.rows = [StepRow(**row) for row in state_dict["rows"]]
        self.best = None if state_dict["best"] is None else BestStep(**state_dict["best"])
        self._told_of_step = state_dict["told_of_step"]

    def _add_start(self, trainer: Trainer, pl_module: WatchedModule) -> None:
        start = pl_module.start_answers
        if self.rows or start is None:
            return
        self._add(trainer, step_row(0, start, start))
        self._guard(trainer, 0, start)
        if start.judge is None and self.on_overoptimised != "ignore":
            rank_zero_info(
                "Over-optimisation cannot be seen in this run: nothing but the reward that the policy is trained on "
                "judges its answers; name a second judge in model.judge."
            )

    def _add(self, trainer: Trainer, row: StepRow) -> None:
        # A run that is resumed may come past a step that it has seen.
        self.rows = [*(r for r in self.rows if r.step < row.step), row]
        if trainer.is_global_zero:
            write_steps(Path(trainer.default_root_dir) / STEPS, self.rows)
        # Not global_step: it counts every update of every optimiser, and what the module logs stands at rollout steps.
        for logger in trainer.loggers:
            logger.log_metrics(row.figures(), step=row.step)

    def _guard(self, trainer: Trainer, step: int, now: Answers) -> None:
        """Compare with the best step so far, or become it."""
        if now.judge is None:
            return
        best = self.best
        is_new = best is None or step <= best.step or not equal(best.prompt_id, now.prompt_id)
        if best is None or is_new or now.judge.mean() > best.judge.mean():
            self.best = BestStep(step, now.prompt_id, now.reward, now.judge)
            return
        num_earlier = sum(row.judge_score is not None and row.step < step for row in self.rows)
        change = overoptimisation(now, best, num_earlier)
        if change is None or self.on_overoptimised == "ignore" or self._told_of_step == best.step:
            return
        self._told_of_step = best.step
        message = _describe(step, now, best, change)
        if self.on_overoptimised == "stop":
            trainer.should_stop = True
            message += " Training stops here."
        rank_zero_warn(message)

    def _problems(self) -> list[str]:
        found = []
        if self.on_overoptimised not in ("warn", "stop", "ignore"):
            found.append(f"policy_watch.on_overoptimised: got {self.on_overoptimised}; need warn, stop or ignore")
        if self.num_samples < 0:
            found.append(f"policy_watch.num_samples: got {self.num_samples}; need 0 or more")
        return found


def step_row(step: int, now: Answers, start: Answers, metrics: Mapping[str, Tensor | float] | None = None) -> StepRow:
    """The columns of `steps.csv`.

    Args:
        now: (N,) answers of the policy.
        start: (N,) answers of the starting policy to the same prompts.
        metrics: what the module has logged; `train/...` is taken over as it stands.
    """
    wins = win_rate(now.reward, start.reward)
    if now.judge is not None and start.judge is not None:
        wins = win_rate(now.judge, start.judge)
    return StepRow(
        step=step,
        **_with_bounds("reward", mean_interval(now.reward)),
        **_with_bounds("judge_score", None if now.judge is None else mean_interval(now.judge)),
        kl=float(now.kl.double().mean()),
        length=float(now.num_tokens.double().mean()),
        eos_rate=float(now.has_ended.double().mean()),
        **_with_bounds("win_rate", wins),
        repetition=sum(map(repetition, now.responses)) / len(now.responses),
        distinct_2=distinct_n(now.responses),
        train=_train_figures(metrics or {}),
    )


def _with_bounds(name: str, interval: Interval | None) -> dict[str, Any]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval or (None, None, None), strict=True))


def overoptimisation(now: Answers, best: BestStep, num_earlier: int) -> Interval | None:
    """How far the judge has fallen since its best step, where the reward has risen and the fall is no chance.

    That is what Gao et al. (2023, section 3) show: past some KL divergence the reward still rises and the truth falls.
    The best of many noisy steps looks better than it is, and the question is put at every step: with plain 95 %
    intervals four of five runs of 20 steps in which nothing happens would be accused. See `confidence`.

    Args:
        now: (N,) answers of the policy, judged.
        best: (N,) the judge's best step, on the same prompts.
        num_earlier: k, judged steps before this one.

    Returns:
        The paired change of the judge, or None where nothing is wrong.
    """
    if now.judge is None or now.reward.mean() <= best.reward.mean():
        return None
    change = paired_change(now.judge, best.judge, confidence(num_earlier))
    return change if change.high < 0 else None


def confidence(num_earlier: int) -> float:
    """The level of a step's interval, with which at most 5 % of runs of any length are accused by chance.

    Any of the k earlier steps may be the best one, and half of what an interval leaves out lies below it. So a step's
    risk is at most k times half of 0.1 / (k^2 (k + 1)), and these sum to 5 %.

    Args:
        num_earlier: k, judged steps before this one.
    """
    return 1 - 0.1 / (num_earlier**2 * (num_earlier + 1))


def write_steps(path: Path, rows: list[StepRow]) -> None:
    """The whole table again; what a row does not have stays empty."""
    train = list(dict.fromkeys(name for row in rows for name in row.train))
    lines = [[*COLUMNS, *train]]
    for row in rows:
        lines.append([_cell(v) for v in [*(getattr(row, n) for n in COLUMNS), *(row.train.get(n) for n in train)]])
    write_text_atomically(path, "".join(",".join(line) + "\n" for line in lines))


def write_samples(path: Path, now: Answers, start: Answers, num_samples: int) -> None:
    """The first prompts with what the policy answered at the start and answers now, one JSON object a line.

    Args:
        now: (N,) answers of the policy.
        start: (N,) answers of the starting policy to the same prompts.
    """
    lines = []
    for i in range(min(num_samples, len(now.prompts))):
        row = {
            "prompt": now.prompts[i],
            "before": start.responses[i],
            "after": now.responses[i],
            "reward_before": float(start.reward[i]),
            "reward_after": float(now.reward[i]),
            "judge_score_before": None if start.judge is None else float(start.judge[i]),
            "judge_score_after": None if now.judge is None else float(now.judge[i]),
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text_atomically(path, "".join(lines))


def steps_table(rows: list[StepRow], best_step: int | None) -> Table:
    """First, best and last step, at most 80 columns wide."""
    table = new_table("step", "reward", "second judge", "win rate", "KL", "tokens", title="Steps of the policy")
    for row in rows:
        is_best = row.step == best_step
        if not (is_best or row is rows[0] or row is rows[-1]):
            continue
        gold = (
            "-"
            if row.judge_score is None
            else f"{row.judge_score:.2f} ({row.judge_score_low:.2f} to {row.judge_score_high:.2f})"
        )
        wins = f"{row.win_rate:.2f} ({row.win_rate_low:.2f} to {row.win_rate_high:.2f})"
        cells = (f"{row.reward:.2f}", gold, wins, f"{row.kl:.1f}", f"{row.length:.0f}")
        table.add_row(f"{'* ' if is_best else ''}{row.step}", *cells, style="bold" if is_best else None)
    return table


def print_steps(rows: list[StepRow], best_step: int | None) -> None:
    """The table and what it means."""
    best = [] if best_step is None else ["* is the step that the second judge likes best."]
    note = "Step 0 is the starting policy, which later ones win against. Intervals: 95 %."
    say(steps_table(rows, best_step), note, *best)


def _describe(step: int, now: Answers, best: BestStep, change: Interval) -> str:
    judge = float(best.judge.double().mean())
    return (
        f"The policy is over-optimised at step {step}: since step {best.step} its reward has risen from "
        f"{best.reward.mean():.3g} to {now.reward.mean():.3g}, and the second judge has fallen from {judge:.3g} to "
        f"{judge + change.estimate:.3g} (change {change.low:.3g} to {change.high:.3g}): it games the reward model; "
        f"take a checkpoint of about step {best.step}, or train again with more weight on the KL penalty."
    )


def _train_figures(metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
    """`train/...` by column names, without the copies that Lightning makes of what is logged by step and by epoch."""
    figures = {}
    for name, value in metrics.items():
        is_copy = any(name.endswith(end) and name.removesuffix(end) in metrics for end in ("_step", "_epoch"))
        if name.startswith("train/") and not is_copy:
            figures[name.replace("/", "_")] = float(value)
    return figures


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
