"""Tables of the docs from `benchmarks/gpu/results/`; `python -m benchmarks.tables` writes them into the pages.

Where nothing was measured, a table is one sentence that says so and what to run.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Results = dict[str, dict[str, Any]]
OVERLAYS = {"memory_12gb": "qlora_12gb", "memory_24gb": "qlora_24gb", "memory_80gb": "lora_80gb"}
"""Part -> overlay of `hardware/`."""
PROFILES = {"hh": "HH-RLHF", "ultrafeedback": "UltraFeedback"}
TASKS = {
    "label": ("labelling", "pipeline", ("pipeline", "pipeline, flash", "pipeline, Liger")),
    "train": ("training", "TRL", ("trl", "trl, flash", "trl, Liger")),
}


def load(folder: Path = RESULTS) -> Results:
    """What was measured, by part; trials in tiny count for nothing."""
    found = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    return {name: result for name, result in found.items() if not result["tiny"] and result.get("figures")}


def tables(results: Results | None = None) -> dict[str, dict[str, str]]:
    """Every table by its page and name."""
    found = load() if results is None else results
    return {
        "hardware.md": {"gpu_memory": memory_table(found), "gpu_checks": checks_table(found)},
        "performance.md": {"gpu_speed": speed_table(found), "gpu_kernels": kernels_table(found)},
        "rl.md": {"gpu_rl": rl_table(found)},
    }


def missing(what: str, parts: Iterable[str]) -> str:
    """One sentence in the place of a table."""
    command = f"python benchmarks/gpu/run.py --only {' '.join(parts)}"
    return f"{what}: not measured yet.\n`{command}` does it on a machine with a GPU."


def measured_on(results: Iterable[dict[str, Any]]) -> str:
    """A sentence on cards and versions."""
    rows = {(r["machine"]["card"], r["machine"]["driver"], r["machine"]["versions"]["torch"]) for r in results}
    return "Measured on " + " and ".join(
        f"{card} (driver {driver}, PyTorch {torch})" for card, driver, torch in sorted(rows)
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return (
        "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        .replace("| --- ", "|---")
        .replace("|--- |", "|---|")
    )


def _gibibytes(number: float) -> str:
    return f"{number / 2**30:.1f}"


def memory_table(results: Results) -> str:
    """One line for each overlay and use: measured peak, and what `plan` said."""
    parts = [*OVERLAYS, "memory_ppo_24gb"]
    rows = []
    for part, overlay in OVERLAYS.items():
        figures = results.get(part, {}).get("figures", {})
        for use in ("training", "labelling"):
            if use not in figures.get("peaks", {}):
                continue
            peak = figures["peaks"][use] + (figures.get("paged_bytes", 0) if use == "training" else 0)
            plan = figures["plan"]["all"][use]
            cells = [f"`{overlay}`", use, f"{figures['gigabytes']} GB", _gibibytes(peak), _gibibytes(plan)]
            rows.append([*cells, f"{plan / peak:.2f}"])
    ppo = results.get("memory_ppo_24gb", {}).get("figures", {})
    if ppo.get("peaks"):
        peak, plan = max(ppo["peaks"].values()), max(ppo.get("plan", {}).get("all", {}).values(), default=0)
        said = [_gibibytes(plan), f"{plan / peak:.2f}"] if plan else ["-", "-"]
        rows.append(["PPO, 4 bits, four models", "all", "24 GB", _gibibytes(peak), *said])
    if not rows:
        return missing("Peak memory of 8B models", parts)
    header = ["overlay", "use", "allowed", "peak, GiB", "`plan`, GiB", "plan over peak"]
    return _table(header, rows) + f"\n\n{measured_on(results[p] for p in parts if p in results)}; 8B shape of Llama 3."


def memory_measured(results: Results | None = None) -> dict[str, str]:
    """Config -> the peak with 8B in its line of the README, for those that were measured."""
    found = load() if results is None else results
    cells = {}
    for part, overlay in OVERLAYS.items():
        figures = found.get(part, {}).get("figures", {})
        if {"training", "labelling"} <= figures.get("peaks", {}).keys():
            peak = max(figures["peaks"]["training"] + figures.get("paged_bytes", 0), figures["peaks"]["labelling"])
            cells[f"hardware/{overlay}.yaml"] = f"{_gibibytes(peak)} GiB"
    return cells


def speed_table(results: Results) -> str:
    """One line for each shape, lengths and task: ours beside the best setting of others."""
    parts = [f"speed_{shape}" for shape in ("135m", "0.5b", "1.5b", "8b")]
    rows = []
    for part in parts:
        figures = results.get(part, {}).get("figures", {})
        for profile, tasks in figures.get("profiles", {}).items():
            for task, found in tasks.items():
                rows.append(_speed_row(figures, profile, task, found["ways"]))
    if not rows:
        return missing("Pairs a second on a GPU", parts)
    header = ["model", "lengths of", "", "pairs a second", "with Liger's kernels", "best of others"]
    header += [
        "ours is faster by",
        "than their defaults by",
        "than our padded rows by",
        "of the matrix-product rate",
        "peak, GiB",
    ]
    return _table(header, rows) + f"\n\n{measured_on(results[p] for p in parts if p in results)}, bfloat16."


def _speed_row(figures: dict[str, Any], profile: str, task: str, ways: dict[str, Any]) -> list[str]:
    title, other, names = TASKS[task]
    ours = ways["packed"]
    fastest = max((ways[name] for name in ("packed", "packed, Liger") if name in ways), key=_rate)
    best = max((ways[name] for name in names if name in ways), key=_rate)
    # With adapters ours is slower than the pipeline's plain model is; padded rows are compared with what they are like.
    padded, like = ("padded, adapters", ways["packed, adapters"]) if task == "label" else ("padded", ours)
    flops = 2 * figures["layer_weights"] * _rate(fastest) * fastest.get("tokens_per_pair", 0)
    share = f"{flops / figures['matmul_rate']:.2f}" if task == "label" else "-"
    return [
        figures["shape"],
        PROFILES[profile],
        title,
        _rate_and_tokens(ours),
        _rate_and_tokens(ways.get("packed, Liger", {})),
        f"{_rate_and_tokens(best)}, {other} in batches of {best['setting']}",
        _times(_rate(fastest), best),
        _times(_rate(fastest), ways.get(f"{names[0]}, defaults", {})),
        _times(_rate(like), ways[padded]),
        share,
        _gibibytes(fastest.get("peak_bytes", 0)),
    ]


def _rate(way: dict[str, Any]) -> float:
    return way["pairs_per_second"]


def _rate_and_tokens(way: dict[str, Any]) -> str:
    if not way.get("pairs_per_second"):
        return str(way.get("error", "-"))
    return f"{_rate(way):.1f} ({way['tokens_per_pair']:.0f} tokens a pair)"


def kernels_table(results: Results) -> str:
    """One line for each shape and task: milliseconds of a batch, and the share of each kind of kernel."""
    if "kernels" not in results:
        return missing("Where the time of a batch goes", ["kernels"])
    kinds = ["matrix products", "attention", "copies and casts", "elementwise", "others"]
    rows = []
    for name, found in results["kernels"]["figures"]["tasks"].items():
        shares = [found["milliseconds_by_kind"].get(kind, 0.0) / found["milliseconds"] for kind in kinds]
        rows.append([name, f"{found['milliseconds']:.0f}", *(f"{share:.0%}".replace("%", " %") for share in shares)])
    table = _table(["shape, task", "ms of a batch", *kinds], rows)
    return f"{table}\n\n{measured_on([results['kernels']])}, LoRA on a bfloat16 body, packed rows."


def _times(rate: float, other: dict[str, Any]) -> str:
    return f"{rate / other['pairs_per_second']:.2f}" if other.get("pairs_per_second") else "-"


def rl_table(results: Results) -> str:
    """Seconds of a step by side, and tokens a second of every sampler."""
    if "rl" not in results:
        return missing("An RL step on a GPU", ["rl"])
    figures = results["rl"]["figures"]
    names = {"ours": "ours", "trl": "TRL's RLOO", "trl, continuous batching": "TRL's RLOO, continuous batching"}
    rows = []
    for side, found in figures["sides"].items():
        if "error" in found:
            rows.append([names[side], "failed", "", "", ""])
        else:
            rows.append([names[side], *(f"{found[name]:.2f}" for name in ("total", "rollout", "scoring", "update"))])
    table = _table(["", "seconds a step", "sampling", "scoring", "update"], rows)
    samplers = {"ours": "ours", "generate": "`generate`", "generate_batch": "`generate_batch` (continuous batching)"}
    rates = [
        f"{samplers[name]} {found['tokens_per_second']:,.0f}"
        for name, found in figures.get("samplers", {}).items()
        if "tokens_per_second" in found
    ]
    work = figures["work"]
    text = (
        f"{measured_on([results['rl']])}, shape of {figures['shape']}, {work['prompts_per_step']} prompts of "
        f"{work['prompt_tokens']} tokens, {work['responses_per_prompt']} responses of {work['new_tokens']} to each."
    )
    if waits := figures.get("waits"):
        text += f" The host waits {waits['a_step']:.0f} times for the card in a step of ours."
    return f"{table}\n\n{text}" + (f" Sampling alone, tokens a second: {', '.join(rates)}." if rates else "")


def checks_table(results: Results) -> str:
    """What runs at all: one line for each part that measures nothing else."""
    titles = {
        "smoke": "packed rows under FlexAttention, and 4 bits",
        "correctness": "tests marked `gpu`",
        "compile": "compilations of FlexAttention",
        "distributed": "DDP and FSDP2, NCCL, one process",
    }
    rows = [
        [title, results[part]["status"], str(results[part]["figures"].get("headline", ""))]
        for part, title in titles.items()
        if part in results
    ]
    return _table(["", "outcome", ""], rows) if rows else missing("What runs on a GPU", titles)
