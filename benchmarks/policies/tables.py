"""Tables of policies trained against reward models of more and of fewer labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.shared.intervals import t_interval
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

PAGE = "rl.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "condition", "seed")
NAMES = {"seed": "seed (15 % of the labels)", "evolved": "evolved from it", "all_labels": "all labels"}


def win_rate(now: list[float], other: list[float]) -> float:
    """Share of the answers with the higher gold score; a tie counts half."""
    a, b = np.array(now), np.array(other)
    return float(np.mean((a > b) + 0.5 * (a == b)))


def gold_change(run: Run) -> float:
    """Mean gold score of the trained policy's answers, less the starting policy's."""
    return float(np.mean(run["gold_after"]) - np.mean(run["gold_before"]))


def gold_change_at(run: Run, kl: float) -> float:
    """Change of the gold score on held-out prompts where the policy first comes to a KL.

    Straight lines between the steps at which the policy answered them; KL in nats a response.
    """
    steps = run["steps"]
    for before, after in zip(steps, steps[1:], strict=False):
        if before["kl"] <= kl <= after["kl"]:
            share = (kl - before["kl"]) / (after["kl"] - before["kl"]) if after["kl"] > before["kl"] else 0.0
            return (
                before["judge_score"] + share * (after["judge_score"] - before["judge_score"]) - steps[0]["judge_score"]
            )
    raise ValueError(f"the policy of random seed {run['seed']} never comes to a KL of {kl}")


def common_kl(runs: Sequence[Run]) -> float:
    """The largest KL that every one of some policies comes to."""
    return min(max(step["kl"] for step in run["steps"]) for run in runs)


def policy_tables(found: Mapping[str, Mapping[int, Run]]) -> dict[str, str]:
    """`policies`, a line each, and `policy_differences`, against the policy of the seed's reward model.

    Only random seeds that every reward model has are compared.

    Args:
        found: runs by reward model and random seed.
    """
    seeds = sorted(set.intersection(*(set(found.get(name, {})) for name in NAMES)))
    if not seeds:
        return dict.fromkeys(("policies", "policy_differences"), "*No random seed has been run with all three.*")
    runs = {name: [found[name][seed] for seed in seeds] for name in NAMES}
    level = [common_kl([runs[name][i] for name in NAMES]) for i in range(len(seeds))]

    def at_equal_kl(name: str) -> list[float]:
        return [gold_change_at(run, kl) for run, kl in zip(runs[name], level, strict=True)]

    rows, versus = [], []
    for name, title in NAMES.items():
        own, first = runs[name], runs["seed"]
        wins = [win_rate(run["gold_after"], other["gold_after"]) for run, other in zip(own, first, strict=True)]
        rows.append(
            [
                *(title, str(len(seeds)), t_interval([run["reward_model_test_accuracy"] for run in own])),
                t_interval([gold_change(run) for run in own]),
                t_interval([win_rate(run["gold_after"], run["gold_before"]) for run in own]),
                "-" if name == "seed" else t_interval(wins),
                t_interval([run["steps"][-1]["kl"] for run in own]),
                t_interval(at_equal_kl(name)),
                t_interval([run["reward_change"] for run in own]),
            ]
        )
        if name != "seed":
            differences = [gold_change(run) - gold_change(other) for run, other in zip(own, first, strict=True)]
            level_ones = [a - b for a, b in zip(at_equal_kl(name), at_equal_kl("seed"), strict=True)]
            versus.append([title, str(len(seeds)), t_interval(differences), t_interval(level_ones)])
    header = "reward model|random seeds|its accuracy, test pairs|change of gold|wins over the start"
    header += "|wins over the seed's policy|KL, nats|change of gold at equal KL|change of reward"
    columns = ["reward model", "random seeds", "change of gold, against the seed's", "the same at equal KL"]
    return {"policies": table(header.split("|"), rows), "policy_differences": table(columns, versus)}


def tables() -> dict[str, str]:
    """All tables by name."""
    return policy_tables(RESULTS.by_condition())
