"""Tables of forecasts: what stopping by them saves, what it costs, and how far they are off."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch

from benchmarks.shared.intervals import t_interval
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run
from ser_lightning.callbacks.rounds import choose_round
from ser_lightning.evolution.forecast import Outlook, look_ahead, net_label_change

PAGE = "forecast.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "condition", "seed")
MIN_GAIN = 0.005
MIN_GAINS = (0.0025, MIN_GAIN, 0.01)
RECIPES = {
    "paper": "`PaperRule`, `folds: 0`",
    "ours": "`CalibratedRule`, `folds: 2`",
    "frozen": "`CalibratedRule`, `folds: 2`, frozen body",
}


def label_changes(run: Run) -> list[float]:
    """Of the rounds after the seed model."""
    labels = [torch.tensor([int(digit) for digit in line]) for line in run["pool_labels"]]
    return [net_label_change(labels[r], labels[r - 1], labels[r - 2] if r > 1 else None) for r in range(1, len(labels))]


def outlook(run: Run, number: int, min_gain: float = MIN_GAIN) -> Outlook:
    """What is forecast after a round of a run."""
    credits = [torch.tensor(credit) for credit in run["seed_credits"][: number + 1]]
    return look_ahead(credits, label_changes(run)[:number], min_gain)


def forecast_stop(run: Run, min_gain: float) -> int:
    """Round after which the forecast ends a run; its last one where it does not."""
    last = len(run["rounds"]) - 1
    return next((r for r in range(last) if outlook(run, r, min_gain).rounds_left == 0), last)


def tokens(run: Run, stop: int) -> float:
    """Compute of the rounds up to one."""
    return sum(row["tokens"] for row in run["rounds"][: stop + 1])


def accuracy(run: Run, stop: int) -> float:
    """Share of the held pairs that the model is right on that is delivered when a run ends after a round."""
    delivered = choose_round([torch.tensor(credit) for credit in run["seed_credits"][: stop + 1]])
    return run["held"]["accuracy"][str(delivered)]


def compare(ends: Sequence[tuple[Run, int]], others: Sequence[tuple[Run, int]]) -> list[str]:
    """Compute saved and accuracy gained by the first of each two (run, last round), over random seeds."""
    pairs = list(zip(ends, others, strict=True))
    saved = [1 - tokens(*one) / tokens(*other) for one, other in pairs]
    change = [accuracy(*one) - accuracy(*other) for one, other in pairs]
    return [t_interval(saved), t_interval([accuracy(*other) for _, other in pairs]), t_interval(change)]


def savings_table(runs: Mapping[str, Sequence[Run]]) -> str:
    """One line for each recipe and each gain that makes a round worth it: compute saved, and accuracy."""
    rows = []
    for condition, here in runs.items():
        name = RECIPES[condition]
        usual = [(run, len(run["rounds"]) - 1) for run in here]
        for min_gain in MIN_GAINS:
            early = [(run, forecast_stop(run, min_gain)) for run in here]
            rounds = [f"{mean(stop for _, stop in ends):.1f}" for ends in (usual, early)]
            rows.append([name, str(min_gain), str(len(here)), *rounds, *compare(early, usual)])
    header = "recipe|`min_gain`|random seeds|rounds after the seed model: by the rule|by the forecast"
    header += "|share of the compute saved|accuracy, by the rule|change by stopping at the forecast"
    return table(header.split("|"), rows)


def fixed_table(runs: Mapping[str, Sequence[Run]]) -> str:
    """The paper's recipe ended by the forecast, and after a fixed round without any, against its own end."""
    here, rows = runs.get("paper", ()), []
    usual = [(run, len(run["rounds"]) - 1) for run in here]
    ways = {f"by the forecast, `min_gain` {MIN_GAIN}": [(run, forecast_stop(run, MIN_GAIN)) for run in here]}
    ways |= {f"always after round {r}": [(run, min(r, last)) for run, last in usual] for r in range(4)}
    for name, ends in ways.items() if here else ():
        saved, _, change = compare(ends, usual)
        rows.append([name, str(len(here)), saved, change])
    return table(["`PaperRule` ends", "random seeds", "share of the compute saved", "change of accuracy"], rows)


def against_paper_table(runs: Mapping[str, Sequence[Run]]) -> str:
    """Ours, stopped by the forecast or not, against the paper's recipe to its own stop."""
    paper = {run["seed"]: run for run in runs.get("paper", ())}
    both = [run for run in runs.get("ours", ()) if run["seed"] in paper]
    if not both:
        return "No random seed has runs of both yet."
    usual = [(paper[run["seed"]], len(paper[run["seed"]]["rounds"]) - 1) for run in both]
    rows = []
    for name, ends in (
        ("ours, by its rule", [(run, len(run["rounds"]) - 1) for run in both]),
        ("ours, by the forecast", [(run, forecast_stop(run, MIN_GAIN)) for run in both]),
    ):
        rows.append([name, str(len(both)), *compare(ends, usual)])
    return table(["", "random seeds", "compute saved", "accuracy, the paper's stop", "change"], rows)


def errors_table(runs: Mapping[str, Sequence[Run]]) -> str:
    """How far forecasts were off, round by round: accuracy out of fold, and the net change of the pool's labels."""
    rows = []
    for condition, all_runs in runs.items():
        name = RECIPES[condition]
        for number in range(1, max(len(run["rounds"]) for run in all_runs)):
            here = [run for run in all_runs if len(run["rounds"]) > number]
            changed = [run["rounds"][number]["flipped"] / run["rounds"][number]["scored"] for run in here]
            net = [label_changes(run)[number - 1] for run in here]
            figures = [*_accuracy_figures(here, number), t_interval(net), t_interval(changed)]
            rows.append([name, str(number), str(len(here)), *figures])
    header = "recipe|round|forecasts|accuracy: mean error|root mean square|of “as the round before”"
    return table([*header.split("|"), "in the 95 % interval", "net label change", "labels changed"], rows)


def _accuracy_figures(runs: Sequence[Run], number: int) -> list[str]:
    """Errors of the forecasts of a round: what came minus what was forecast."""
    if not runs[0]["seed_credits"][0]:
        return ["-"] * 4
    came = [mean(run["seed_credits"][number]) for run in runs]
    past = [outlook(run, number - 1) for run in runs]
    errors = [now - forecast.accuracy for now, forecast in zip(came, past, strict=True)]
    same = [now - mean(run["seed_credits"][number - 1]) for now, run in zip(came, runs, strict=True)]
    inside = sum(forecast.low <= now <= forecast.high for now, forecast in zip(came, past, strict=True))
    return [f"{mean(errors):+.3f}", f"{_rms(errors):.3f}", f"{_rms(same):.3f}", f"{inside} of {len(runs)}"]


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(mean(value**2 for value in values))


def forecast_tables(results: Mapping[str, Mapping[int, Run]]) -> dict[str, str]:
    """All tables by name.

    Args:
        results: runs by condition and random seed.
    """
    runs = {name: [results[name][seed] for seed in sorted(results[name])] for name in RECIPES if results.get(name)}
    return {
        "savings": savings_table(runs),
        "fixed": fixed_table(runs),
        "against_paper": against_paper_table(runs),
        "errors": errors_table(runs),
    }


def tables() -> dict[str, str]:
    """All tables by name."""
    return forecast_tables(RESULTS.by_condition())
