"""Tables of policies trained against reward models of more and of fewer labels: `policy_study.py`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from intervals import interval

Runs = Mapping[str, Mapping[int, dict[str, Any]]]
"""By reward model and random seed."""
NAMES = {"seed": "seed (15 % of the labels)", "evolved": "evolved from it", "all_labels": "all labels"}


def win_rate(now: list[float], other: list[float]) -> float:
    """Share of the answers with the higher gold score; a tie counts half."""
    a, b = np.array(now), np.array(other)
    return float(np.mean((a > b) + 0.5 * (a == b)))


def gold_change(run: dict[str, Any]) -> float:
    """Mean gold score of the trained policy's answers, less the starting policy's."""
    return float(np.mean(run["gold_after"]) - np.mean(run["gold_before"]))


def gold_change_at(run: dict[str, Any], kl: float) -> float:
    """Change of the gold score on held-out prompts where the policy first comes to a KL.

    Straight lines between the steps at which the policy answered them; KL in nats a response.
    """
    steps = run["steps"]
    for before, after in zip(steps, steps[1:], strict=False):
        if before["kl"] <= kl <= after["kl"]:
            share = (kl - before["kl"]) / (after["kl"] - before["kl"]) if after["kl"] > before["kl"] else 0.0
            return before["gold"] + share * (after["gold"] - before["gold"]) - steps[0]["gold"]
    raise ValueError(f"the policy of random seed {run['seed']} never comes to a KL of {kl}")


def common_kl(runs: list[dict[str, Any]]) -> float:
    """The largest KL that every one of some policies comes to."""
    return min(max(step["kl"] for step in run["steps"]) for run in runs)


def policy_tables(found: Runs) -> dict[str, str]:
    """`policies`, a line each, and `policy_differences`, against the policy of the seed's reward model.

    Only random seeds that every reward model has are compared.
    """
    seeds = sorted(set.intersection(*(set(found.get(name, {})) for name in NAMES)))
    if not seeds:
        return dict.fromkeys(("policies", "policy_differences"), "*No random seed has been run with all three.*")
    runs = {name: [found[name][seed] for seed in seeds] for name in NAMES}
    level = [common_kl([runs[name][i] for name in NAMES]) for i in range(len(seeds))]

    def at_equal_kl(name: str) -> list[float]:
        return [gold_change_at(run, kl) for run, kl in zip(runs[name], level, strict=True)]

    lines = [
        "| reward model | random seeds | its accuracy, test pairs | change of gold | wins over the start "
        "| wins over the seed's policy | KL, nats | change of gold at equal KL | change of reward |",
        "|" + "---|" * 9,
    ]
    versus = [
        "| reward model | random seeds | change of gold, against the seed's | the same at equal KL |",
        "|" + "---|" * 4,
    ]
    for name, title in NAMES.items():
        own, first = runs[name], runs["seed"]
        cells = [title, str(len(seeds)), interval([run["reward_model_test_accuracy"] for run in own])]
        cells += [interval([gold_change(run) for run in own])]
        cells += [interval([win_rate(run["gold_after"], run["gold_before"]) for run in own])]
        wins = [win_rate(run["gold_after"], other["gold_after"]) for run, other in zip(own, first, strict=True)]
        cells += ["-" if name == "seed" else interval(wins), interval([run["steps"][-1]["kl"] for run in own])]
        lines.append(_line([*cells, interval(at_equal_kl(name)), interval([run["reward_change"] for run in own])]))
        if name != "seed":
            differences = [gold_change(run) - gold_change(other) for run, other in zip(own, first, strict=True)]
            level_ones = [a - b for a, b in zip(at_equal_kl(name), at_equal_kl("seed"), strict=True)]
            versus.append(_line([title, str(len(seeds)), interval(differences), interval(level_ones)]))
    return {"policies": "\n".join(lines), "policy_differences": "\n".join(versus)}


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
