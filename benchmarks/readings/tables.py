"""Tables of the study of readings: what a reading is worth in labels, and what evolution and queries add to it.

Shapes: S random seeds, N test pairs that they share, R resamples.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.readings.answer_table import answer_table
from benchmarks.readings.grouping import DELIVERED, Runs, Settings, blocks_of, by_setting, names
from benchmarks.readings.judge_table import judge_table
from benchmarks.readings.loss_table import loss_table
from benchmarks.shared.bootstrap import Estimate, Floats, accuracies, credits, share_of
from benchmarks.shared.intervals import t_interval
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

PAGE = "results.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "setting", "seed")
HARM = 0.01
CONDITIONS = {
    "standard_calibrated": "standard, `CalibratedRule`",
    "standard_paper": "standard, `PaperRule`",
    "standard_released": "standard, `ReleasedRule`",
    "standard_keep_all": "standard, keep all",
    "ours_calibrated": "`auto`, `CalibratedRule`",
    "ours_paper": "`auto`, `PaperRule`",
    "ours_released": "`auto`, `ReleasedRule`",
    "ours_keep_all": "`auto`, keep all",
    "ours_ensemble": "`auto`, `CalibratedRule`, ensemble of the fold models",
    "views_calibrated": "two views, `CalibratedRule` where they agree",
    "views_keep_all": "two views, all on which they agree",
    "views_ensemble": "two views, all on which they agree, ensemble of the fold models",
}
DELIVERIES = {
    "seed": "always the seed model",
    "last": "always the last round",
    "not_worse": "latest that is not worse by a standard error",
    "accuracy_0": "best accuracy, ties to the earlier (`choose_round`)",
    "accuracy_1": "best accuracy, if the gain is above 1 standard error",
    "accuracy_2": "best accuracy, above 2",
    "loss_0": "best log loss, ties to the earlier",
    "loss_1": "best log loss, if the gain is above 1 standard error",
    "loss_2": "best log loss, above 2",
}
GROUPS: dict[str, Callable[[str], bool]] = {
    "`auto`, `CalibratedRule`": lambda name: name == "ours_calibrated",
    "`auto` and two views, every rule": lambda name: not name.startswith("standard"),
    "standard, every rule": lambda name: name.startswith("standard"),
}
STRATEGIES = {
    "spread": "at random from the prompts with the fewest labels",
    "least_sure": "least sure",
    "information": "expected information, each pair by itself",
    "information_batch": "expected information, greedy batch",
    "views": "disagreement of the two views",
}


def with_all_labels(parts: Mapping[str, Runs], part: str) -> tuple[list[Run], dict[int, Run]]:
    """Runs of a part on fifths for which the models of all labels are there, and these by fifth."""
    whole = {run["fifth"]: run for run in parts.get("all", {}).values()}
    return [run for run in parts.get(part, {}).values() if run["fifth"] in whole], whole


@dataclass(frozen=True)
class Compared:
    """A condition with a share of the labels, against the models of all of them."""

    num_runs: int
    seed_model: Estimate
    delivered: Estimate
    gain: Estimate
    over_ours: Estimate
    """Delivered minus the seed model that reads what `auto` says."""
    seed_over_standard_all: Estimate
    over_standard_all: Estimate
    """Delivered minus the standard reading with all labels."""
    last_gain: Estimate
    share: Estimate | None
    """Of the gap to all labels with the condition's own reading."""


def compared(parts: Mapping[str, Runs], part: str, condition: str) -> Compared | None:
    """A condition on all runs that have it; None where there is none."""
    found, whole = with_all_labels(parts, part)
    runs = [run for run in found if condition in run["conditions"]]
    if not runs:
        return None
    reading = "standard" if condition.startswith("standard") else "ours"

    def models(run: Run) -> list[str]:
        own, full = run["conditions"][condition], whole[run["fifth"]]["credit"]
        delivered = own["credit"][own["delivered"][DELIVERED]]
        ours = run["conditions"]["ours_calibrated"]["credit"][0]
        return [own["credit"][0], delivered, full[reading], own["credit"][-1], ours, full["standard"]]

    mean, drawn = accuracies(blocks_of(runs, models))

    def difference(*weights: float) -> Estimate:
        return Estimate.of(float(mean @ np.array(weights)), drawn @ np.array(weights))

    return Compared(
        num_runs=len(runs),
        seed_model=difference(1, 0, 0, 0, 0, 0),
        delivered=difference(0, 1, 0, 0, 0, 0),
        gain=difference(-1, 1, 0, 0, 0, 0),
        over_ours=difference(0, 1, 0, 0, -1, 0),
        seed_over_standard_all=difference(1, 0, 0, 0, 0, -1),
        over_standard_all=difference(0, 1, 0, 0, 0, -1),
        last_gain=difference(-1, 0, 0, 1, 0, 0),
        share=share_of(mean[:3], drawn[:, :3]),
    )


@dataclass(frozen=True)
class Point:
    """Both readings with so many labels."""

    labels: int
    standard: Estimate
    ours: Estimate
    difference: Estimate
    over_standard_all: Estimate
    """Ours minus the standard reading with all labels."""
    multiplier: Estimate
    """How many times as many labels the standard reading needs for the accuracy of ours."""
    is_capped: tuple[bool, bool]
    """Whether all labels are not enough for it: in the mean, and at the upper end of the interval."""


def label_curve(parts: Mapping[str, Runs]) -> list[Point]:
    """Both readings with ever more labels, to all of them."""
    runs, whole = with_all_labels(parts, "curve")
    if not runs:
        return []
    sizes = [*runs[0]["sizes"]]

    def models(run: Run) -> list[str]:
        full = whole[run["fifth"]]["credit"]
        return [
            *(text for size in sizes for text in (run["sizes"][size]["credit"][r] for r in ("standard", "ours"))),
            *(full["standard"], full["ours"]),
        ]

    mean, drawn = accuracies(blocks_of(runs, models))
    labels = [float(np.mean([run["sizes"][size]["labels"] for run in runs])) for size in sizes]
    labels.append(float(np.mean([run["labels"] for run in whole.values()])))
    points = []
    for k, number in enumerate(labels):
        own, other = mean[2 * k + 1], mean[2 * k]
        need = labels_needed(labels, mean[None, ::2], np.array([own]))[0]
        needs = labels_needed(labels, drawn[:, ::2], drawn[:, 2 * k + 1])
        multiplier = Estimate.of(need / number, needs / number)
        points.append(
            Point(
                round(number),
                Estimate.of(float(other), drawn[:, 2 * k]),
                Estimate.of(float(own), drawn[:, 2 * k + 1]),
                Estimate.of(float(own - other), drawn[:, 2 * k + 1] - drawn[:, 2 * k]),
                Estimate.of(float(own - mean[-2]), drawn[:, 2 * k + 1] - drawn[:, -2]),
                multiplier,
                (bool(need > 0.999 * labels[-1]), multiplier.high * number > 0.999 * labels[-1]),
            )
        )
    return points


def labels_needed(labels: Sequence[float], curves: Floats, wanted: Floats) -> Floats:
    """(R,) labels with which a curve first reaches an accuracy: straight lines over the logarithm of their number.

    At least the fewest and at most the most labels of the curve.

    Args:
        labels: K numbers, ascending.
        curves: (R, K) accuracies; where one falls, what it had before counts.
        wanted: (R,) accuracies.
    """
    rising = np.maximum.accumulate(curves, axis=1) + 1e-9 * np.arange(curves.shape[1])
    found = [np.interp(goal, curve, np.log(labels)) for curve, goal in zip(rising, wanted, strict=True)]
    return np.exp(np.array(found))


def headline(results: Settings) -> str:
    """Three figures for each data set and body."""
    rows = []
    for where, parts in results.items():
        found = compared(parts, "15", "ours_calibrated")
        if found is None:
            continue
        runs = parts["15"].values()
        labels = np.mean([run["labels"] for run in runs])
        whole = parts["all"].values()
        every = np.mean([run["labels"] for run in whole])
        point = min(label_curve(parts), key=lambda p: abs(np.log(p.labels / labels)), default=None)
        rows.append(
            [
                *(*names(where), str(found.num_runs), f"{labels:.0f} of {every:.0f}"),
                *(str(found.seed_over_standard_all), str(found.over_standard_all)),
                *("undefined" if found.share is None else str(found.share), _multiplier(point)),
                f"{np.mean([run['longer'] for run in whole]):.3f}",
            ]
        )
    header = "data|body|runs|labels|(a) `auto`, seed model, minus standard with all labels|(a) evolved"
    more = "(b) share of the gap closed by evolution|(c) label multiplier|longer response"
    return table([*header.split("|"), *more.split("|")], rows)


def _multiplier(point: Point | None) -> str:
    if point is None:
        return "-"
    figures, (mean, high) = point.multiplier, point.is_capped
    ends = f"[{figures.low:.1f}, {'≥ ' if high else ''}{figures.high:.1f}]"
    return f"{'≥ ' if mean else ''}{figures.mean:.1f} {ends} at {point.labels}"


def labels_table(results: Settings) -> str:
    """One line a number of labels."""
    rows = []
    for where, parts in results.items():
        points = label_curve(parts)
        for i, point in enumerate(points):
            is_last = i == len(points) - 1
            multiplier = "-" if is_last else _multiplier(point).partition(" at ")[0]
            figures = point.standard, point.ours, point.difference, point.over_standard_all
            number = f"{point.labels}, all" if is_last else str(point.labels)
            rows.append([*names(where), number, *map(str, figures), multiplier])
    header = "data|body|labels|standard reading|`auto`|difference|`auto` minus standard with all labels"
    return table([*header.split("|"), "label multiplier"], rows)


def conditions_table(results: Settings) -> str:
    """One line for each share of labels and condition."""
    rows = []
    for where, parts in results.items():
        for part in ("5", "15"):
            for condition, name in CONDITIONS.items():
                if (found := compared(parts, part, condition)) is None:
                    continue
                runs = [run["conditions"][condition] for run in parts[part].values() if condition in run["conditions"]]
                right = [run["kept_right"][0] for run in runs if run["kept"][0]]
                figures = found.seed_model, found.delivered, found.gain, found.last_gain, found.over_ours
                rows.append(
                    [
                        *(*names(where), f"{part} %", name, str(found.num_runs), *map(str, figures)),
                        "undefined" if found.share is None else str(found.share),
                        f"{np.mean([run['kept'][0] for run in runs]):.0%}",
                        f"{np.mean(right):.3f}" if right else "-",
                    ]
                )
    header = "data|body|labels|condition|runs|seed model|delivered|gain|gain of the last round"
    more = "delivered minus the seed model of `auto`|share of the gap|kept, first round|kept labels right"
    return table([*header.split("|"), *more.split("|")], rows)


def delivery_table(results: Settings) -> str:
    """One line for each way to deliver and group of conditions: gains over the own seed model, over all runs."""
    rows = []
    for group, is_in in GROUPS.items():
        runs = [
            condition
            for parts in results.values()
            for part in ("5", "15")
            for run in parts.get(part, {}).values()
            for name, condition in run["conditions"].items()
            if is_in(name)
        ]
        for way, name in DELIVERIES.items() if runs else ():
            number = [round_of(run, way) for run in runs]
            gain = np.array(
                [
                    credits(run["credit"][r]).mean() - credits(run["credit"][0]).mean()
                    for run, r in zip(runs, number, strict=True)
                ]
            )
            harmed, helped = ((gain < -HARM).mean(), (gain > HARM).mean())
            evolved = np.mean([r > 0 for r in number])
            rows.append(
                [group, name, str(len(runs)), f"{gain.mean():+.4f}", f"{harmed:.0%}", f"{helped:.0%}", f"{evolved:.0%}"]
            )
    header = "conditions|delivered|runs|mean gain|worse than its seed model by more than a point|better by more"
    return table([*header.split("|"), "runs that deliver a later round"], rows)


def round_of(run: Run, way: str) -> int:
    """Which round a run of a condition delivers."""
    return {"seed": 0, "last": len(run["credit"]) - 1}.get(way, run["delivered"].get(way))


def calibration_table(results: Settings) -> str:
    """Calibration error of the seed model on test pairs, by the number of folds that fitted its temperature."""
    rows = []
    for where, parts in results.items():
        for part in ("5", "15"):
            runs = list(parts.get(part, {}).values())
            for folds in runs[0]["calibration"] if runs else ():
                bins = [one for run in runs for one in run["calibration"][folds]]
                error, confidence, right = pooled_error(bins)
                row = folds, f"{error:.3f}", f"{confidence:.3f}", f"{right:.3f}"
                rows.append([*names(where), f"{part} %", *row])
    header = "data|body|labels|folds|calibration error|mean stated confidence|share right"
    return table(header.split("|"), rows)


def pooled_error(bins: Sequence[Mapping[str, float]]) -> tuple[float, float, float]:
    """Expected calibration error, mean confidence and accuracy over the bins of several runs, joined by their tenth."""
    joined: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for one in bins:
        place = joined[min(9, int(one["confidence"] * 10))]
        for i, value in enumerate((one["pairs"], one["pairs"] * one["confidence"], one["right"])):
            place[i] += value
    total, stated, right = np.array([*joined.values()]).T
    pairs = total.sum()
    return float(np.abs(stated - right).sum() / pairs), float(stated.sum() / pairs), float(right.sum() / pairs)


def queries_table(results: Settings) -> str:
    """Accuracy by who chooses the pairs that are labelled; differences are paired by random seed."""
    rows = []
    for where, parts in results.items():
        runs = [run["accuracy"] for run in parts.get("queries", {}).values()]
        for size in runs[0]["random"] if runs else ():
            if any(size not in run["random"] for run in runs):
                continue
            at_random = [run["random"][size] for run in runs]
            row = [*names(where), size, str(len(runs)), t_interval(at_random)]
            for name in STRATEGIES:
                row.append(t_interval([run[name][size] - run["random"][size] for run in runs]))
            rows.append(row)
    header = ["data", "body", "labels", "random seeds", "at random"]
    return table([*header, *(f"{name}, difference" for name in STRATEGIES.values())], rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    results = by_setting(RESULTS.read())
    return {
        "readings_headline": headline(results),
        "readings_labels": labels_table(results),
        "readings_conditions": conditions_table(results),
        "readings_delivery": delivery_table(results),
        "readings_loss": loss_table(results),
        "readings_calibration": calibration_table(results),
        "readings_queries": queries_table(results),
        "readings_judge": judge_table(results),
        "readings_answers": answer_table(results),
    }
