"""What a run leaves behind: `rounds.csv`, one audit file a round, the table at the end, and the choice of a round."""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Trainer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.evaluation.calibration import prob_a_wins
from ser_lightning.evaluation.metrics import calibration_error, half_credit, length_correlation
from ser_lightning.evolution.forecast import look_ahead
from ser_lightning.evolution.selection import SelectionContext, SelectionResult
from ser_lightning.records import PairScores, Selection
from ser_lightning.report.data import COST_PARTS
from ser_lightning.utils.atomic import write_atomically, write_text_atomically

REASONS = ("kept", "length quota", "not sure enough")


@dataclass
class RoundRow:
    """One line of `rounds.csv`; round 0 is the seed model. `docs/metrics.md` defines the columns."""

    round: int
    scored: int
    kept: int
    flipped: int
    status: int
    pseudo_label_accuracy: float
    pool_accuracy: float
    seed_oof_accuracy: float
    test_accuracy: float
    calibration_error: float
    length_correlation: float
    tokens: int
    seconds: float
    delivered: bool
    net_label_change: float = math.nan
    forecast_accuracy: float = math.nan
    forecast_low: float = math.nan
    forecast_high: float = math.nan
    forecast_error: float = math.nan
    predicted_gain: float = math.nan
    predicted_last_round: float = math.nan

    def figures(self) -> dict[str, float]:
        """The columns by their logger names, `select/...`."""
        return {f"select/{f.name}": float(getattr(self, f.name)) for f in fields(self)}


def round_figures(
    data: PreferenceDataModule,
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
        result: (N,) what the rule said.
        selection: what was kept of it.
    """
    seed, truth = context.scores, data.held_out_labels("pool")
    prob_a = prob_a_wins(seed.margin, context.scale()[0])
    right = (seed.margin > 0) == (context.target > 0.5)
    test_label = half_credit(test.margin, torch.ones(len(test)))
    return {
        "scored": len(pool),
        "kept": len(selection),
        "status": selection.status,
        "pseudo_label_accuracy": _share(truth.count_right(selection.pair_id, selection.label)),
        "pool_accuracy": _share(truth.count_right(pool.pair_id, result.label)),
        "seed_oof_accuracy": float(half_credit(seed.margin, context.target).mean()) if len(seed) else math.nan,
        "test_accuracy": _share(data.held_out_labels("test").count_right(test.pair_id, test_label)),
        "calibration_error": calibration_error(torch.maximum(prob_a, 1 - prob_a), right),
        "length_correlation": length_correlation(pool.margin, pool.length_difference),
    }


def forecast_figures(rows: list[RoundRow], seed_credit: list[Tensor], min_gain: float) -> dict[str, float]:
    """The columns that say what had been forecast of the last round, how wrong that was, and what is forecast now.

    Args:
        rows: rounds that build on the same seed and pool; the last one is still without these columns.
        seed_credit: for each of them the (M,) credit of the same seed pairs, out of fold; M is 0 without folds.
        min_gain: accuracy that makes a round worth its compute.
    """
    net_label_changes = [row.net_label_change for row in rows[1:]]
    figures = {}
    if len(rows) > 1:
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
    """One line for the log: what had been forecast of a round, what came, and what is forecast behind it."""
    past = ""
    if row.forecast_accuracy == row.forecast_accuracy:
        past = f"out of fold {row.seed_oof_accuracy:.3f}, forecast {row.forecast_accuracy:.3f} "
        past += f"({row.forecast_low:.3f} to {row.forecast_high:.3f}); "
    ahead = f"the next round is forecast to gain {row.predicted_gain:+.4f}"
    return f"{past}{ahead}, and evolution to converge at round {row.predicted_last_round:.0f}"


def choose_round(seed_credit: list[Tensor], barred: Collection[int] = ()) -> int:
    """The round whose model the run hands over, by the human labels of the seed alone.

    The latest round that is not worse out of fold than the best one by more than one standard error of their paired
    difference: rounds differ by less than the noise of a small seed, and a later one has learnt from more pairs.

    Args:
        seed_credit: for each round the (M,) credit (1 right, 0.5 tie, 0 wrong) of the same M seed pairs, scored out of
            fold. Without folds M is 0 and the last round is delivered.
        barred: rounds that a guard has taken back; never all of them.
    """
    rounds = [r for r in range(len(seed_credit)) if r not in barred]
    if len(seed_credit[0]) < 2:
        return rounds[-1]
    best = max(rounds, key=lambda r: float(seed_credit[r].mean()))
    for round in reversed(rounds):
        loss = seed_credit[best] - seed_credit[round]
        if loss.mean() <= loss.std() / len(loss) ** 0.5:
            return round
    return best


def round_folder(trainer: Trainer, round: int) -> Path:
    """Where a round leaves its files."""
    return Path(trainer.default_root_dir) / "rounds" / str(round)


def write_rounds(path: Path, rows: list[RoundRow]) -> None:
    """The whole table again, so that `delivered` is true in every line."""
    names = [f.name for f in fields(RoundRow)]
    lines = [names, *([_cell(getattr(row, name)) for name in names] for row in rows)]
    write_text_atomically(path, "".join(",".join(line) + "\n" for line in lines))


def write_audit(path: Path, pool: PairScores, result: SelectionResult, keep: Tensor) -> None:
    """One line for every pool pair: what the model said of it and what became of it.

    Args:
        path: Parquet file to write.
        pool: (N,) scores.
        result: (N,) what the rule said.
        keep: (N,) what was kept after the length quota.
    """
    code = torch.where(keep, 0, torch.where(result.keep, 1, 2)).to(torch.int8)
    reason = pa.DictionaryArray.from_arrays(code.numpy(), REASONS).cast(pa.string())
    columns = {
        "pair_id": pool.pair_id.numpy(),
        "reward_a": pool.reward_a.numpy(),
        "reward_b": pool.reward_b.numpy(),
        "probability": result.prob_a.numpy(),
        "label": result.label.numpy(),
        "kept": keep.numpy(),
        "reason": reason,
    }
    write_atomically(path, lambda file: pq.write_table(pa.table(columns), file))


def write_cost(path: Path, cost: dict[str, dict[str, float]]) -> None:
    """Tokens and seconds of a round, for each of `COST_PARTS` that it had.

    Args:
        path: JSON file to write.
        cost: `EvolutionState.cost`.
    """
    lines = {part: {**cost[part], "seconds": round(cost[part]["seconds"], 3)} for part in COST_PARTS if part in cost}
    write_text_atomically(path, json.dumps(lines, indent=1) + "\n")


def write_test_scores(path: Path, test: PairScores) -> None:
    """The rewards of the test pairs, without labels: what a paired comparison of rounds or runs needs.

    Args:
        path: Parquet file to write.
        test: (N,) scores.
    """
    columns = {name: getattr(test, name).numpy() for name in ("pair_id", "reward_a", "reward_b")}
    write_atomically(path, lambda file: pq.write_table(pa.table(columns), file))


def rounds_table(rows: list[RoundRow]) -> Table:
    """The table of rounds, for people; fits into 80 columns."""
    table = Table(
        title="Rounds of self-evolution",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    headers = "round|kept|of|flips|st.|kept\nright|pool\nright|seed\noof|test|cal.\nerr.|len.\ncorr.|time"
    for name in headers.split("|"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        accuracies = (row.pseudo_label_accuracy, row.pool_accuracy, row.seed_oof_accuracy, row.test_accuracy)
        cells = [str(row.kept), str(row.scored), str(row.flipped), str(row.status), *(f"{a:.3f}" for a in accuracies)]
        cells += [f"{row.calibration_error:.2f}", f"{row.length_correlation:+.2f}", _duration(row.seconds)]
        table.add_row(f"{'* ' if row.delivered else ''}{row.round}", *cells, style="bold" if row.delivered else None)
    return table


def print_rounds(rows: list[RoundRow]) -> None:
    """The table and what the star means."""
    console = Console()
    console.print(rounds_table(rows))
    console.print(
        "Round 0 is the seed model. * is delivered: chosen out of fold on the seed, without test or pool labels."
    )


def _share(counts: tuple[int, float]) -> float:
    known, right = counts
    return right / known if known else math.nan


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def _cell(value: float | int | bool) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
