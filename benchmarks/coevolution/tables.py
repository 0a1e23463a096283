"""Table of the co-evolution of policy and reward model: `run.py --out`."""

from pathlib import Path

from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

PAGE = "rl.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "seed")


def coevolution_table(run: Run) -> str:
    """One line a turn: the reward model before and after it has evolved on the policy's answers."""

    def text(found: dict[str, float], digits: int) -> str:
        return f"{found['estimate']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"

    rows = [["0", text(run["start_gold"], 2), *("-" * 5)]]
    for turn in run["turns"]:
        accuracy = [text(turn["accuracy"][when], 3) for when in ("before", "after", "change")]
        test = [f"{turn['test_accuracy'][when]:.3f}" for when in ("before", "after")]
        rows.append([str(turn["turn"]), text(turn["policy_gold"], 2), *accuracy, *test])
    header = "turn|gold score of the policy|its answers right, before|after|change|test pairs, before|after"
    return table(header.split("|"), rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    return {"coevolution": coevolution_table(RESULTS.read()[0])}
