"""A plan as aligned text of at most 80 columns."""

from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import Any

from ser_lightning.utils.durations import duration
from ser_lightning.utils.terminal import new_table, text_of

_UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def as_text(plan: dict[str, Any]) -> str:
    """The tables of a plan, one below the other."""
    parts = [_model(plan["model"]), _memory(plan["memory"])]
    if "rounds" in plan:
        parts += [_data(plan["data"]), _rounds(plan["rounds"])]
    else:
        parts += [_policy_data(plan["data"]), _steps(plan["steps"], plan["data"])]
    return "\n\n".join("\n".join(lines) for lines in (*parts, _checks(plan["checks"])))


def _model(model: dict[str, Any]) -> list[str]:
    rows = [
        (kind, f"{w['trained']:,}", f"{w['frozen']:,}", size(w["num_bytes"]))
        for kind, w in [*model["kinds"].items(), ("all", model["all"])]
    ]
    return [f"Model {model['path']}", *_table(("weights", "trained", "frozen", "memory"), rows)]


def _memory(memory: dict[str, Any]) -> list[str]:
    there, uses = memory["device_bytes"], [*memory["all"]]
    rows: list[tuple[str, ...]] = [
        (kind, *(size(v[use]) if v[use] else "-" for use in uses)) for kind, v in memory["kinds"].items()
    ]
    totals = [memory["all"][use] for use in uses]
    rows.append(("all", *map(size, totals)))
    rows.append((f"of the {memory['memory_of']}'s {size(there)}", *(f"{n / there:.0%}" for n in totals)))
    rows.append(("tokens of the largest batch", *(f"{memory['batch_tokens'][use]:,}" for use in uses)))
    title = f"Memory, with {memory['optimizer']}, without the libraries and the pairs themselves"
    lines = [title, *_table(("", *uses), rows)]
    if max(totals) > there:
        budgets = " or ".join(dict.fromkeys(memory["budgets"].values()))
        text = f"It will not fit. Lower {budgets}, train adapters, quantize to nf4, or set backbone."
        lines += wrap(f"{text}gradient_checkpointing.", 80)
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


def _policy_data(data: dict[str, Any]) -> list[str]:
    rows = [
        (name, *(f"{split[key]:,}" for key in ("number", "median", "high", "total")))
        for name, split in data["splits"].items()
    ]
    what = "responses, tokens with their prompts" if data["of"] == "responses" else "prompts, tokens"
    lines = [
        f"Data: distinct {what}",
        *_table((data["of"], "number", "tokens, median", "95%", "tokens"), rows),
        f"{data['rows']:,} rows of pairs read, {data['dropped']:,} dropped.",
    ]
    return [*lines, f"Validation is on {data['val_pairs']:,} pairs held out."] if data.get("val_pairs") else lines


def _steps(steps: dict[str, Any], data: dict[str, Any]) -> list[str]:
    total = steps["total"]
    parts = {"step": "a step", "epoch": f"an epoch of {steps['per_epoch']:,}", "all": f"all {total:,}" if total else ""}
    if total is None:
        del parts["all"]
    rows = [
        (name, *("-" if part not in counts else short(counts[part]) for part in parts))
        for name, counts in steps["work"].items()
        if any(part in counts for part in parts)
    ]
    lines = ["Steps", *_table(("", *parts.values()), rows)]
    if total is None:
        return [*lines, "Nothing ends the run: set trainer.max_epochs or trainer.max_steps."]
    if data["of"] == "prompts":
        prompts, number = steps["work"]["prompts"]["all"], data["splits"]["train"]["number"]
        lines.append(f"{prompts / number:,.1f} passes over the prompts to train on.")
    number = steps["validations"]
    validated = f"{number:,} validation{'' if number == 1 else 's'}. " if number else ""
    return [*lines, f"{validated}Time: no rate is known of a policy."]


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
    if judge := rounds["pairwise_judge"]:
        work = f"{judge['sequences']:,} sequences, some {short(judge['tokens'])} tokens"
        lines += wrap(f"Before them the pairwise judge reads every pair in both orders, once: {work}.", 80)
    if chosen := rounds["choice_tokens"]:
        lines.append(f"Before them auto reads the seed once to choose where the head reads, {short(chosen)} tokens.")
    if cached := rounds["cached"]:
        tokens = short(cached["tokens"])
        lines.append(f"The frozen body computes every pair once, {tokens} tokens, and no round computes it again.")
        return [*lines, f"Its states take at most {size(cached['bytes'])} in data.cache_dir."]
    if rounds["rate"] is None:
        return [*lines, "Time: no rate is known; give --pairs_per_second, or an earlier run with --like."]
    return [*lines, f"Time at {rounds['rate']:,.4g} {rounds['source']}."]


_SPAN = "A later round trains on as many pool pairs as its rule takes: none to all."


def _checks(checks: Sequence[dict[str, str]]) -> list[str]:
    lines = ["Checks"]
    width = max((len(check["check"]) for check in checks), default=0)
    for check in checks:
        start = f"  {check['says']:5}{check['check']:{width}} "
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
