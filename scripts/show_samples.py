"""Show what a policy answered before the RL stage and what it answers after it, from `samples/` of its run.

python scripts/show_samples.py runs/NAME --samples 3
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console


def last_samples(run: Path) -> Path:
    """The samples of the last step.

    Raises:
        FileNotFoundError: if the run has none.
    """
    found = sorted((run / "samples").glob("*.jsonl"), key=lambda path: int(path.stem))
    if not found:
        raise FileNotFoundError(f"samples: got none in {run}; give the run folder of a fit of ppo.yaml")
    return found[-1]


def describe(row: dict[str, Any]) -> str:
    """One prompt and its two answers with their scores."""
    lines = [row["prompt"]]
    for when in ("before", "after"):
        gold = row[f"judge_score_{when}"]
        scores = f"reward {row[f'reward_{when}']:5.2f}" + ("" if gold is None else f", second judge {gold:5.2f}")
        lines.append(f"  {when:6} | {scores} | {row[when]}")
    return "\n".join(lines)


def main() -> int:
    """Print some samples and where the others are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of ppo.yaml")
    parser.add_argument("--samples", type=int, default=3, help="how many")
    args = parser.parse_args()
    try:
        path = last_samples(args.run)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    console = Console(markup=False, highlight=False)
    for row in rows[: args.samples]:
        console.print(describe(row), end="\n\n", soft_wrap=True)
    console.print(f"Before: the policy that training began with; after: step {path.stem}. All samples: {path.parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
