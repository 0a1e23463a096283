"""Drift guards as a callback: `EvolutionCallback` asks it before a round's labels are trained on."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ser_lightning.callbacks.alerts import alert
from ser_lightning.callbacks.state import EvolutionState
from ser_lightning.errors import raise_problems
from ser_lightning.evolution.guards import KINDS, Finding, Guard, Level, RoundView, inspect_round
from ser_lightning.evolution.selection import SelectionContext, SelectionResult
from ser_lightning.records import PairScores
from ser_lightning.runs.files import round_files, write_json

LEVELS = get_args(Level)


class GuardCallback(Callback):
    """Warn of a round that goes wrong, end evolution before its labels do harm, or take its model back.

    `docs/guards.md` says what each guard measures, and why its level and threshold are what they are.

    Args:
        levels: of guards whose level is to be another: `ignore`, `warn`, `stop` (do not use this round's labels and end
            evolution) or `rollback` (nor deliver its model), such as {flips: warn}.
        thresholds: of guards whose threshold is to be another, such as {flips: 0.5}; shares from 0 to 1.
    """

    def __init__(self, levels: dict[str, Level] | None = None, thresholds: dict[str, float] | None = None) -> None:
        levels, thresholds = levels or {}, thresholds or {}
        raise_problems(_problems(levels, thresholds))
        self.guards = {
            name: Guard(levels.get(name, kind.default.level), thresholds.get(name, kind.default.threshold))
            for name, kind in KINDS.items()
        }
        self._said: set[str] = set()
        """Guards that have said what they mean; the next time only their figures are new."""

    def inspect(self, trainer: Trainer, view: RoundView) -> Level:
        """The strictest level that fired in a round, "ignore" for none; alerts, logs and writes the findings.

        Returns:
            The same on all ranks.
        """
        found = inspect_round(view, self.guards)
        fired = [finding for finding in found if finding.fired]
        strictest: Level = max((f.level for f in fired), key=LEVELS.index, default="ignore")
        for finding in fired:
            said = finding.figures if finding.guard in self._said else finding.message
            alert(trainer, f"round {view.round}, guard {finding.guard}", f"{said} ({_DONE[finding.level]})")
            self._said.add(finding.guard)
        figures = {f"guard/{f.guard}": f.value for f in found if f.value == f.value}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
        if trainer.is_global_zero:
            _write(round_files(trainer.default_root_dir, view.round).guards, found)
        return trainer.strategy.broadcast(strictest)


def _problems(levels: dict[str, Level], thresholds: dict[str, float]) -> list[str]:
    found = [
        f"guards.{argument}: got {name!r}, which is no guard; use {', '.join(KINDS)}"
        for argument, given in (("levels", levels), ("thresholds", thresholds))
        for name in given
        if name not in KINDS
    ]
    found += [
        f"guards.levels.{name}: got {level!r}; use one of {', '.join(LEVELS)}"
        for name, level in levels.items()
        if level not in LEVELS
    ]
    return found + [
        f"guards.thresholds.{name}: got {number}; need a share in [0, 1]"
        for name, number in thresholds.items()
        if not 0 <= number <= 1
    ]


_DONE: dict[Level, str] = {
    "warn": "evolution goes on",
    "stop": "its labels are not used, and evolution ends here",
    "rollback": "its labels are not used, and an earlier round is delivered where there is one",
}


def _write(path: Path, found: list[Finding]) -> None:
    lines = [{k: None if v != v else v for k, v in asdict(finding).items()} for finding in found]
    write_json(path, lines)


def ask_guards(
    trainer: Trainer,
    state: EvolutionState,
    credits: list[Tensor],
    pool: PairScores,
    context: SelectionContext,
    result: SelectionResult,
) -> Level:
    """What the run's guards say of a round; "ignore" without any.

    Args:
        state: its last row is the round's.
        credits: for each round the credit of the same seed pairs.
        pool: (N,) scores that the labels were made of.
        context: out-of-fold scores and labels of the seed.
        result: (N,) the rule's result.
    """
    is_taught = state.round == 0 and trainer.datamodule.teacher
    fold_pool = [] if is_taught else state.fold_pool_scores
    view = RoundView(state.round, pool, fold_pool, result, state.pool_label, context, state.seed_scores, credits)
    levels: list[Any] = [c.inspect(trainer, view) for c in trainer.callbacks if isinstance(c, GuardCallback)]
    return max(levels, key=LEVELS.index, default="ignore")
