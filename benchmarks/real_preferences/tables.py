"""Tables of self-evolution on real preferences, and the headline: the share of the gap closed, with its interval.

Shapes: S random seeds, N test pairs that they share.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.real_preferences.mistakes import MISTAKES, mistakes_table
from benchmarks.rules.run import NAMES as RULE_NAMES
from benchmarks.rules.tables import RESULTS as RULES
from benchmarks.rules.tables import world_share
from benchmarks.shared.bootstrap import Block, Estimate, Floats, accuracies, credits, share_of
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

PAGE = "results.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "setting", "condition", "seed")
MIN_GAP = 0.06
"""Accuracy that all labels must add to the seed model's before a share of the gap means anything."""
NAMES = {
    **RULE_NAMES,
    "soft": "ours, `pseudo_label_mode: soft`",
    "weighted": "ours, `pseudo_label_mode: weighted`",
    "committee": "ours, `committee: true`",
    "seed_share": "ours, `seed_share: 0.5`",
    "quota": "ours, `length_quota: seed`",
    "add": "ours, `combine: add`",
}


@dataclass(frozen=True)
class Closed:
    """What evolution has closed of the gap between the seed model and all labels."""

    seed_model: Estimate
    delivered: Estimate
    all_labels: Estimate
    gain: Estimate
    gap: Estimate
    share: Estimate | None
    """Mean gain over mean gap; None where the gap's own interval holds 0."""


def closed(blocks: Sequence[Block]) -> Closed:
    """Gains, gap and share of the gap, of blocks of three models: seed model, delivered model and all labels."""
    mean, drawn = accuracies(blocks)
    parts = {
        "seed_model": (1, 0, 0),
        "delivered": (0, 1, 0),
        "all_labels": (0, 0, 1),
        "gain": (-1, 1, 0),
        "gap": (-1, 0, 1),
    }
    found = {name: Estimate.of(float(mean @ weights), drawn @ weights) for name, weights in parts.items()}
    return Closed(**found, share=share_of(mean, drawn))


Runs = Mapping[int, Run]
"""By random seed."""
Settings = Mapping[str, Mapping[str, Runs]]
"""By setting (data set and percentage of labels) and condition."""


def by_setting(found: Sequence[Run]) -> Settings:
    """Results in the order of a table; what `DATA-all` has belongs to every setting of the data set."""
    results: dict[str, dict[str, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    for one in found:
        results[one["setting"]][one["condition"]][one["seed"]] = one
    whole = {name: results.pop(name) for name in [*results] if name.endswith("-all")}
    for name, conditions in results.items():
        conditions.update(whole.get(f"{name.rpartition('-')[0]}-all", {}))
    return dict(sorted(results.items(), key=lambda item: _place(item[0])))


def _place(setting: str) -> tuple[str, int]:
    data, _, percent = setting.rpartition("-")
    return data, int(percent)


def closed_in(conditions: Mapping[str, Runs], condition: str, against: str | None = None) -> tuple[int, Closed] | None:
    """How many random seeds a condition and all labels both have, and what was closed on them.

    Args:
        conditions: of a setting.
        condition: what to look at.
        against: another condition, whose delivered models take the place of the seed models.
    """
    own, full = conditions.get(condition, {}), conditions.get("all_labels", {})
    other = own if against is None else conditions.get(against, {})
    seeds_of: dict[int, list[int]] = defaultdict(list)
    for seed in sorted(own.keys() & full.keys() & other.keys()):
        seeds_of[own[seed]["fifth"]].append(seed)
    if not seeds_of:
        return None
    blocks = []
    for seeds in seeds_of.values():
        first = _round_zero(own, seeds) if against is None else _delivered(other, seeds)
        models = np.stack([first, _delivered(own, seeds), _round_zero(full, seeds)])
        blocks.append(Block(models, np.array(own[seeds[0]]["test"]["prompt"])))
    return sum(map(len, seeds_of.values())), closed(blocks)


def _round_zero(runs: Runs, seeds: Sequence[int]) -> Floats:
    """(S, N) credits of the seed models, which are the models of all labels where the seed is everything."""
    return np.stack([credits(runs[seed]["test"]["credit"]["0"]) for seed in seeds])


def _delivered(runs: Runs, seeds: Sequence[int]) -> Floats:
    """(S, N) credits of the delivered models."""
    return np.stack([credits(runs[seed]["test"]["credit"][str(runs[seed]["delivered"])]) for seed in seeds])


def baselines_of(conditions: Mapping[str, Runs]) -> dict[str, float] | None:
    """Mean accuracy of each baseline in a setting; None where they were not measured."""
    found = [run["figures"] for run in conditions.get("baselines", {}).values()]
    return {name: float(np.mean([f[name] for f in found])) for name in found[0]} if found else None


def has_gap(figures: Closed, baselines: Mapping[str, float] | None) -> bool:
    """Whether a setting can carry the headline.

    Its gap to all labels is at least `MIN_GAP` and has an interval above 0, and all labels beat both baselines.
    """
    is_better = baselines is not None and all(
        figures.all_labels.mean > baselines[name] for name in ("longer", "bag_of_words_all_labels")
    )
    return is_better and figures.gap.low > 0 and figures.gap.mean >= MIN_GAP


def headline(results: Settings, world: str) -> str:
    """A line for each setting of real preferences that has a gap; the synthetic dataset's where none has.

    Args:
        results: of the study.
        world: share of the gap closed on the synthetic dataset.
    """
    lines = []
    for setting, conditions in results.items():
        found = closed_in(conditions, "ours")
        if found and found[1].share and has_gap(found[1], baselines_of(conditions)):
            share = found[1].share
            figures = f"{share.mean:.2f} [{share.low:.2f}, {share.high:.2f}]"
            lines.append(f"`gap closed: {figures} on {setting}` ({found[0]} random seeds)")
    if not lines:
        lines = [f"`gap closed: {world} on the synthetic dataset`; no setting of real preferences has such a gap"]
    return "\n\n".join(lines)


def gap_table(results: Settings) -> str:
    """One line a setting: is there a gap to close, and is the model of all labels better than the baselines?"""
    rows = []
    for setting, conditions in results.items():
        if (found := closed_in(conditions, "ours")) is None:
            continue
        number, figures = found
        tests = {run["fifth"]: run["test"]["prompt"] for run in conditions["ours"].values()}
        counts = number, sum(map(len, tests.values())), sum(len(set(test)) for test in tests.values())
        baselines = baselines_of(conditions)
        rows.append(
            [
                *(setting, *map(str, (*counts, figures.seed_model, figures.all_labels, figures.gap))),
                *(
                    f"{baselines[name]:.3f}" if baselines else "-"
                    for name in ("longer", "bag_of_words_seed", "bag_of_words_all_labels")
                ),
                "yes" if has_gap(figures, baselines) else "no",
            ]
        )
    header = "setting|random seeds|test pairs|prompts|seed model|all labels|gap|longer|bag of words, seed|all labels"
    return table([*header.split("|"), "carries the headline"], rows)


def study_table(results: Settings) -> str:
    """One line for each setting and way to evolve."""
    rows = []
    for setting, conditions in results.items():
        for condition, name in NAMES.items():
            if (found := closed_in(conditions, condition)) is None:
                continue
            number, figures = found
            first = [run["rounds"][0] for run in conditions[condition].values()]
            right = [row["pseudo_label_accuracy"] for row in first if row["kept"]]
            versus = None if condition == "ours" else closed_in(conditions, condition, "ours")
            rows.append(
                [
                    *(setting, name, str(number), str(figures.delivered), str(figures.gain)),
                    str(versus[1].gain) if versus else "-",
                    "undefined" if figures.share is None else str(figures.share),
                    f"{np.mean([row['kept'] / row['scored'] for row in first]):.0%}",
                    f"{np.mean(right):.3f}" if right else "-",
                ]
            )
    header = "setting|rule|random seeds|delivered|gain|against ours|share of the gap closed|kept, first round"
    return table([*header.split("|"), "kept labels right"], rows)


def rounds_table(results: Settings, condition: str = "ours") -> str:
    """One line for each setting and round: means over the random seeds that reached the round."""
    names = ("test_accuracy", "pool_accuracy", "pseudo_label_accuracy", "calibration_error", "length_correlation")
    rows = []
    for setting, conditions in results.items():
        runs = [run["rounds"] for run in conditions.get(condition, {}).values()]
        for number in range(max(map(len, runs), default=0)):
            found = [rounds[number] for rounds in runs if len(rounds) > number]
            kept = f"{np.mean([row['kept'] / row['scored'] for row in found]):.0%}"
            figures = [_mean([row[name] for row in found]) for name in names]
            rows.append([setting, str(number), str(len(found)), kept, *figures])
    return table(["setting", "round", "runs", "kept", *names], rows)


def _mean(values: list[float]) -> str:
    """Of the runs that have one: nothing kept, no accuracy."""
    known = [v for v in values if not np.isnan(v)]
    return f"{np.mean(known):.3f}" if known else "-"


def cost_table(results: Settings) -> str:
    """One line a setting and condition: tokens of the pairs trained on and scored, means over random seeds."""
    rows = []
    for setting, conditions in results.items():
        for condition, name in {**NAMES, "all_labels": "all labels"}.items():
            if runs := list(conditions.get(condition, {}).values()):
                tokens = np.mean([sum(row["tokens"] for row in run["rounds"]) for run in runs])
                rows.append([setting, name, f"{tokens:,.0f}"])
    return table(["setting", "rule", "tokens read"], rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    results = by_setting(RESULTS.read())
    return {
        "headline": headline(results, world_share(RULES.by_condition())),
        "gap_check": gap_table(results),
        "study": study_table(results),
        "study_rounds": rounds_table(results),
        "study_cost": cost_table(results),
        "study_mistakes": mistakes_table(MISTAKES.read()),
    }
