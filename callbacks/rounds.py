"""The figures of a round, the table at the end, and the choice of the delivered round."""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from rich.table import Table
from torch import Tensor

from ser_lightning.evaluation.metrics import calibration_error, confidence_and_right, half_credit, length_correlation
from ser_lightning.evolution.forecast import look_ahead
from ser_lightning.evolution.learning_curve import LabelGain, label_gains
from ser_lightning.evolution.selection import SelectionContext, SelectionResult
from ser_lightning.records import PairScores, Selection
from ser_lightning.report.outcome import answers, asked_rounds
from ser_lightning.runs.files import ADVICE, RoundRow, first_round, how_delivered, write_json
from ser_lightning.training.reading_choice import seed_differences
from ser_lightning.utils.durations import duration
from ser_lightning.utils.terminal import new_table, say

if TYPE_CHECKING:  # it loads every kind of model
    from ser_lightning.datamodules.preference import PreferenceDataModule


def round_figures(
    data: "PreferenceDataModule",
    pool: PairScores,
    test: PairScores,
    context: SelectionContext,
    result: SelectionResult,
    selection: Selection,
) -> dict[str, Any]:
    """The measured columns of `rounds.csv`; hidden labels are only counted.

    Args:
        data: knows how many labels of pool and test are right.
        pool: (N,) scores that the labels were made of.
        test: scores of the test pairs.
        context: out-of-fold scores and labels of the seed.
        result: (N,) the rule's result.
        selection: what was kept of it.
    """
    seed, truth = context.scores, data.held_out_labels("pool")
    confidence, right = confidence_and_right(seed.margin, context.target, context.scale()[0])
    test_label = half_credit(test.margin, torch.ones(len(test)))
    return {
        "scored": len(pool),
        "kept": len(selection),
        "status": selection.status,
        "pseudo_label_accuracy": _share(truth.count_right(selection.pair_id, selection.label)),
        "pool_accuracy": _share(truth.count_right(pool.pair_id, result.label)),
        "seed_oof_accuracy": float(half_credit(seed.margin, context.target).mean()) if len(seed) else math.nan,
        "test_accuracy": _share(data.held_out_labels("test").count_right(test.pair_id, test_label)),
        "calibration_error": calibration_error(confidence, right),
        "length_correlation": length_correlation(pool.margin, pool.length_difference),
    }


def forecast_figures(rows: list[RoundRow], seed_credit: list[Tensor], min_gain: float) -> dict[str, float]:
    """The columns that say what had been forecast of the last round, how wrong that was, and what is forecast now.

    Args:
        rows: rounds that build on the same seed and pool; the last one is still without these columns.
        seed_credit: for each of them the (M,) credit of the same seed pairs, out of fold; M is 0 without folds.
        min_gain: accuracy that makes a round worth its compute.
    """
    if len(rows) < 2:  # after the first round there is nothing but the prior, equal for every run
        return {}
    net_label_changes = [row.net_label_change for row in rows[1:]]
    figures = {}
    if len(rows) > 2:
        past = look_ahead(seed_credit[:-1], net_label_changes[:-1], min_gain)
        came = float(seed_credit[-1].mean()) if len(seed_credit[-1]) else math.nan
        figures = {
            "forecast_accuracy": past.accuracy,
            "forecast_low": past.low,
            "forecast_high": past.high,
            "forecast_error": came - past.accuracy,
        }
    ahead = look_ahead(seed_credit, net_label_changes, min_gain)
    return {**figures, "predicted_gain": ahead.gain, "predicted_last_round": float(rows[-1].round + ahead.rounds_left)}


def forecast_text(row: RoundRow) -> str:
    """One line for the log: the forecast of a round, its result, and the forecast of the next."""
    past = ""
    if row.forecast_accuracy == row.forecast_accuracy:
        past = f"out of fold {row.seed_oof_accuracy:.3f}, forecast {row.forecast_accuracy:.3f} "
        past += f"({row.forecast_low:.3f} to {row.forecast_high:.3f}); "
    if row.predicted_gain != row.predicted_gain:
        return "no forecast yet: a second round is needed for one"
    ahead = f"the next round is forecast to gain {row.predicted_gain:+.4f}"
    return f"{past}{ahead}, and evolution to converge at round {row.predicted_last_round:.0f}"


def choose_round(seed_credit: list[Tensor], barred: Collection[int] = ()) -> int:
    """The round whose model the run hands over, by the human labels of the seed alone.

    The best one out of fold, and the earlier of equal ones: a later round has to show that it is better, and the seed
    model is delivered where none does.

    Args:
        seed_credit: for each round the (M,) credit (1 right, 0.5 tie, 0 wrong) of the same M seed pairs, scored out of
            fold. Without folds M is 0 and the last round is delivered.
        barred: rounds that a guard has taken back; never all of them.
    """
    rounds = [r for r in range(len(seed_credit)) if r not in barred]
    if len(seed_credit[0]) < 2:
        return rounds[-1]
    return max(rounds, key=lambda r: (float(seed_credit[r].double().mean()), -r))


def rounds_table(rows: list[RoundRow]) -> Table:
    """The table of rounds, at most 80 columns wide."""
    heads = "round|kept|flipped|kept\ncorrect|pool\ncorrect|seed\noof|test|calib.\nerror|length\ncorr.|time"
    table = new_table(*heads.split("|"), title="Rounds of self-evolution")
    for row in rows:
        accuracies = (row.pseudo_label_accuracy, row.pool_accuracy, row.seed_oof_accuracy, row.test_accuracy)
        cells = [str(row.kept), str(row.flipped), *(_cell(a, ".3f") for a in accuracies)]
        cells += [_cell(row.calibration_error, ".2f"), _cell(row.length_correlation, "+.2f")]
        cells.append(duration(row.seconds).replace(" ", ""))
        table.add_row(f"{'* ' if row.delivered else ''}{row.round}", *cells, style="bold" if row.delivered else None)
    return table


LEGEND = (
    "kept          pool pairs whose label, given by the model, trains the next round",
    "flipped       pool pairs that the model labels otherwise than in the round before",
    "kept correct  of the kept labels, those that agree with the human labels in the file, which are only counted",
    "pool correct  the same of all pool labels",
    "seed oof      accuracy on the labels of the seed, out of fold: no pair is scored by a model that trained on it",
    "test          accuracy on the test pairs",
    "calib. error  mean distance of stated confidence from accuracy, on the seed, out of fold",
    "length corr.  correlation of reward and length; far from 0, the model may just like long or short responses",
)


def print_rounds(
    rows: list[RoundRow], sentences: Sequence[str] = (), seed_pairs: Sequence[int] = (), teacher: str | None = None
) -> None:
    """The outcome, the table, and what its words mean.

    Args:
        seed_pairs: that each round was scored on out of fold; a seed grows where a run goes on with new labels.
        teacher: the run whose pseudo-labels round 0 was trained on, if any.
    """
    how = how_delivered(row.seed_oof_accuracy for row in rows)
    note = f"Round 0 is {first_round(teacher)}. * is delivered: {how}, without test or pool labels."
    counts = ", ".join(f"{row.round}: {count}" for row, count in zip(rows, seed_pairs, strict=False))
    grown = [f"seed oof is of different seed pairs (pairs by round: {counts}): compare it within equal numbers only."]
    say("", *sentences, "", rounds_table(rows), note, *(grown if len(set(seed_pairs)) > 1 else []), *LEGEND)


def outcome_sentences(
    data: "PreferenceDataModule", run: Path, rows: list[RoundRow], seed_pairs: Sequence[int]
) -> list[str]:
    """Whether self-evolution helped, whether the model is good enough, and what next.

    Args:
        seed_pairs: that each round was scored on out of fold.
    """
    from ser_lightning.callbacks.baselines import measure_round  # it loads every kind of model

    lines = [vars(row) for row in rows]
    measured = {number: measure_round(data, run, number) for number in asked_rounds(lines)}
    return answers(lines, measured, same_seed=len(set(seed_pairs)) <= 1)


def _cell(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def write_advice(trainer: Trainer, module: Any, next_round: float, min_gain: float, delivered_accuracy: float) -> None:
    """Write what more labels and another round are forecast to gain, and what fine-tuning has gained.

    Every rank reads its share of the seed.

    Args:
        module: a reward model; what labels gain is forecast where its head is solved exactly.
        next_round: accuracy that another round is forecast to gain; NaN without a forecast.
        min_gain: accuracy that is worth its cost.
        delivered_accuracy: of the delivered model, out of fold on the seed; NaN without folds.
    """
    from ser_lightning.callbacks.baselines import frozen_accuracy_of  # it loads every kind of model

    data: Any = getattr(trainer, "datamodule", None)
    gains: list[LabelGain] = []
    seed = data.pair_ids("seed")
    is_solved = getattr(module, "solves_exactly", False) and module.penalty is not None
    if is_solved:
        seed, differences, scale = seed_differences(trainer, module.reward_model)
    if not trainer.is_global_zero:
        return
    if is_solved:
        target, group = data.seed_labels(seed), data.dialogues(seed).tolist()
        gains = label_gains(differences / scale, target, group, module.penalty)
    advice = {
        "is_solved": is_solved,
        "seed_pairs": len(seed),
        "min_gain": min_gain,
        "labels": [asdict(one) for one in gains],
        "next_round": None if math.isnan(next_round) else next_round,
        "frozen_accuracy": frozen_accuracy_of(trainer),
        "answer_accuracy": getattr(module, "answer_accuracy", None),
        "delivered_accuracy": None if math.isnan(delivered_accuracy) else delivered_accuracy,
    }
    write_json(Path(trainer.default_root_dir) / ADVICE, advice)


def _share(counts: tuple[int, float]) -> float:
    known, right = counts
    return right / known if known else math.nan
