"""Table of memory and time by the size of the pool."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

PAGE = "performance.md"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "pairs")
STAGES = {"score": "labelling", "select": "selecting", "accept": "accepting", "write": "audit and table"}


def pool_table(sizes: Sequence[Run]) -> str:
    """Memory by the size of the pool, and the cost of a pair against that in the smallest pool."""
    first, rows = sizes[0], []
    for size in sizes:
        growth = size["pairs"] / first["pairs"]
        peak = max(size["peak_bytes"].values())
        more = (peak - max(first["peak_bytes"].values())) / max(1, size["pairs"] - first["pairs"])
        costs = [size["seconds"][name] / first["seconds"][name] / growth for name in STAGES]
        costs.append(size["encode_seconds"] / first["encode_seconds"] / growth)
        row = [f"{size['pairs']:,}", f"{peak / 2**20:.0f} MiB", f"{more:.0f} B" if size is not first else "-"]
        rows.append([*row, *(f"{cost:.2f}" for cost in costs), f"{size['encode_peak'] / 2**20:.0f} MiB"])
    header = ["pool pairs", "peak memory", "more than the smallest, a pair", *STAGES.values()]
    return table([*header, "encoding, once", "its peak memory"], rows)


def tables() -> dict[str, str]:
    """All tables by name."""
    return {"pool_size": pool_table(RESULTS.read())}
