"""How long each step of the tutorial took, from `results.jsonl`."""

from benchmarks.newcomer.run import NUM_LABELS, NUM_PAIRS, RESULTS
from benchmarks.shared.markdown import table

PAGE = "tutorial.md"


def tables() -> dict[str, str]:
    """A line a step, of the last run."""
    [*_, run] = RESULTS.read()
    rows = [[step, f"{seconds:.0f}"] for step, seconds in run["seconds"].items()]
    rows.append(["all", f"{sum(run['seconds'].values()):.0f}"])
    machine = run["machine"]
    text = f"{NUM_PAIRS} pairs, {NUM_LABELS} labels, {run['model']}, {machine['cores']} cores ({machine['processor']})."
    return {"newcomer": f"{table(['step', 'seconds'], rows)}\n\n{text}"}
