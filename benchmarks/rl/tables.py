"""Tables of the RL stage: gold score, memory, speed, co-evolution."""

from intervals import interval

RL_NAMES = {"gae": "`gae` (with a critic)", "rloo": "`rloo`", "grpo": "`grpo`"}


def rl_table(results: dict[str, dict[int, dict]]) -> str:
    """One line an estimator: gold score of starting and trained policy, and what it cost."""
    lines = [
        "| estimator | random seeds | gold, starting policy | gold, trained | change of gold | change of reward "
        "| KL, nats | change of length, tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, label in RL_NAMES.items():
        if not (runs := list(results.get(name, {}).values())):
            continue
        cells = [label, str(len(runs))]
        cells += [interval([run[when]["gold"] for run in runs]) for when in ("before", "after")]
        cells += [interval([run["change"][figure] for run in runs]) for figure in ("gold", "reward")]
        cells.append(interval([run["steps"][-1]["kl"] for run in runs]))
        cells.append(interval([run["change"]["length"] for run in runs]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def memory_table(result: dict) -> str:
    """Peak memory of the RL models both ways, and what of it is no model."""
    lines = [
        "| | weights in memory | peak memory | of it code and libraries |",
        "|---|---|---|---|",
    ]
    for way, name in {"shared": "one base with adapters", "separate": "four models"}.items():
        found = result["ways"][way]
        cells = [
            name,
            f"{found['parameters'] / 1e6:.0f}M",
            f"{found['peak_mib']:.0f} MiB",
            f"{found['code_mib']:.0f} MiB",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rl_speed_table(estimators: dict[str, dict]) -> str:
    """How many times as long a step of TRL takes, and each of its parts."""
    lines = [
        "| estimator | against | whole step | sampling | scoring | updates | steps of either |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in estimators.items():
        ratios = found["trl_seconds_over_ours"]
        against = f"TRL {found['trl']['versions']['trl']}"
        cells = [
            RL_NAMES[name],
            against,
            *(f"{ratios[part]:.2f}" for part in ("total", "rollout", "scoring", "update")),
        ]
        lines.append("| " + " | ".join([*cells, str(found["ours"]["steps"])]) + " |")
    return "\n".join(lines)


def coevolution_table(study: dict) -> str:
    """One line a turn: the reward model before and after it has evolved on the policy's answers."""

    def cell(found: dict, digits: int) -> str:
        return f"{found['estimate']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"

    lines = [
        "| turn | gold score of the policy | its answers right, before | after | change | test pairs, before | after |",
        "|---|---|---|---|---|---|---|",
        f"| 0 | {cell(study['start_gold'], 2)} | - | - | - | - | - |",
    ]
    for turn in study["turns"]:
        cells = [str(turn["turn"]), cell(turn["policy_gold"], 2)]
        cells += [cell(turn["accuracy"][when], 3) for when in ("before", "after", "change")]
        cells += [f"{turn['test_accuracy'][when]:.3f}" for when in ("before", "after")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
