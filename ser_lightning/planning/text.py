"""A plan as aligned text of at most 80 columns."""

from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import Any

from ser_lightning.utils.durations import duration
from ser_lightning.utils.terminal import new_table, text_of

_UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def as_text(plan: dict[str, Any]) -> str:
    """The tables of a plan, one below the other.

    Args:
        plan: as `plan.make_plan` gives it.
    """
    parts = (_model(plan["model"]), _memory(plan["memory"]), _data(plan["data"]), _rounds(plan["rounds"]))
    return "\n\n".join("\n".join(lines) for lines in (*parts, _checks(plan["checks"])))


def _model(model: dict[str, Any]) -> list[str]:
    rows = [
        (kind, f"{w['trained']:,}", f"{w['frozen']:,}", size(w["num_bytes"]))
        for kind, w in [*model["kinds"].items(), ("all", model["all"])]
    ]
    return [f"Model {model['path']}", *_table(("weights", "trained", "frozen", "memory"), rows)]


def _memory(memory: dict[str, Any]) -> list[str]:
    there = memory["device_bytes"]
    rows: list[tuple[str, ...]] = [
        (kind, size(v["training"]), size(v["labelling"])) for kind, v in memory["kinds"].items()
    ]
    both = [memory["all"][use] for use in ("training", "labelling")]
    rows.append(("all", *map(size, both)))
    rows.append((f"of the {memory['memory_of']}'s {size(there)}", *(f"{n / there:.0%}" for n in both)))
    tokens = memory["batch_tokens"]
    rows.append(("tokens of the largest batch", f"{tokens['training']:,}", f"{tokens['labelling']:,}"))
    title = f"Memory, with {memory['optimizer']}, without the libraries and the pairs themselves"
    lines = [title, *_table(("", "training", "labelling"), rows)]
    if max(both) > there:
        lines += ["It will not fit. Lower data.tokens_per_batch or data.tokens_per_scoring_batch, train"]
        lines += ["adapters, quantize to nf4, or set backbone.gradient_checkpointing."]
    return lines


def _data(data: dict[str, Any]) -> list[str]:
    splits = data["splits"]
    rows = [
        (name, *(f"{t[key]:,}" for key in ("pairs", "median", "high", "total")), f"{t['prompt_share']:.0%}")
        for name, t in splits.items()
    ]
    heads = ("pairs", "number", "tokens, median", "95%", "tokens", "in prompts")
    saved = f"{splits['all']['saved_share']:.0%}" if splits else "0%"
    how = (
        f"saves {saved} of the tokens"
        if data["shares_prompts"]
        else f"would save {saved} of them; the layout is padded"
    )
    return [
        "Data, tokens of both conversations of a pair together",
        *_table(heads, rows),
        f"{data['rows']:,} rows read, {data['dropped']:,} dropped, {data['cut']:,} prompts cut to fit.",
        f"Sharing prompts {how}.",
    ]


def _rounds(rounds: dict[str, Any]) -> list[str]:
    if not rounds["rounds"]:
        return ["Rounds: none, `evolution` is null"]
    rows = []
    for work in rounds["rounds"]:
        cells = (str(work["round"]), _span(work["trained_pairs"], short), short(work["scored_pairs"]))
        seconds = () if work["seconds"] is None else (_span(work["seconds"], duration),)
        rows.append((*cells, _span(work["tokens"], short), *seconds))
    heads = ("round", "pairs trained on", "scored", "tokens", "time")
    lines = ["Rounds", *_table(heads[: len(rows[0])], rows), _SPAN]
    if rounds["cached_tokens"] is not None:
        tokens = short(rounds["cached_tokens"])
        return [*lines, f"The frozen body computes every pair once, {tokens} tokens, and no round computes it again."]
    if rounds["rate"] is None:
        return [*lines, "Time: no rate is known; give --pairs_per_second, or an earlier run with --like."]
    return [*lines, f"Time at {rounds['rate']:,.4g} {rounds['source']}."]


_SPAN = "A later round trains on as many pool pairs as its rule takes: none to all."


def _checks(checks: Sequence[dict[str, str]]) -> list[str]:
    lines = ["Checks"]
    for check in checks:
        start = f"  {check['says']:5}{check['check']:12}"
        lines += wrap(check["text"], 80, initial_indent=start, subsequent_indent=" " * len(start))
    return lines


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    table = new_table(*heads)
    for row in rows:
        table.add_row(*row)
    return text_of(table).splitlines()


def _span(ends: Sequence[float], show: Any) -> str:
    low, high = map(show, ends)
    return low if low == high else f"{low} to {high}"


def size(num_bytes: float) -> str:
    """Bytes in the largest unit that leaves at least 1."""
    for unit, name in _UNITS:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes:.0f} B"


def short(number: float) -> str:
    """A count: `8,123`, `1.2M`, `3.4G`."""
    for unit, name in ((1e9, "G"), (1e6, "M")):
        if number >= unit:
            return f"{number / unit:.1f}{name}"
    return f"{number:,.0f}"
