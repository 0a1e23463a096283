"""`query`: the pool pairs that are worth a human label, as a file to annotate."""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from ser_lightning.data.formats import parse_row
from ser_lightning.data.sources import open_sources
from ser_lightning.errors import UserError, describe
from ser_lightning.evolution.query import MostUncertain, QueryStrategy, Random
from ser_lightning.records import PreferencePair
from ser_lightning.runs.files import delivered_round, round_files, setting
from ser_lightning.runs.pair_tables import read_audit
from ser_lightning.utils.atomic import write_text_atomically
from ser_lightning.utils.terminal import say

STRATEGIES = {one.__name__: one for one in (Random, MostUncertain)}


def main(args: Namespace) -> None:
    """Run the command with its flags."""
    if Path(args.to).exists():  # not even with a flag
        raise UserError(f"--to: {args.to} is there already, perhaps with labels in it; name another file")
    chosen = query(Path(args.run), args.n, load_strategy(args.strategy))
    write_text_atomically(Path(args.to), "".join(json.dumps(_row(pair), ensure_ascii=False) + "\n" for pair in chosen))
    say(
        f"{len(chosen)} pairs to label: {args.to}",
        'Set "label" to 1 where response_a is better and 0 where response_b is, leave null else; then go on with',
        f"  python -m ser_lightning fit --ckpt_path {args.run}/checkpoints/last.ckpt --run_dir NEW "
        f"--data.new_data_path {args.to}",
    )


def load_strategy(name: str) -> QueryStrategy:
    """The strategy of a name: one of `STRATEGIES`, or a class by its dotted path, made without arguments.

    Raises:
        UserError: there is none.
    """
    module, _, attribute = name.rpartition(".")
    reason = ""
    try:
        kind = STRATEGIES.get(name.removeprefix("ser_lightning.")) or getattr(import_module(module), attribute)
        strategy: QueryStrategy = kind()
        if callable(strategy.choose):
            return strategy
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        reason = f" ({describe(error)})" if module else ""  # what is wrong with a class of one's own
    raise UserError(
        f"--strategy: got {name!r}{reason}; give {' or '.join(STRATEGIES)}, or the dotted path of a class of your own "
        "with a method choose(prob_a, pairs, num_pairs)"
    )


def query(run: Path, num_pairs: int, strategy: QueryStrategy) -> list[PreferencePair]:
    """The pool pairs of a run that a strategy asks labels for, without any.

    Args:
        run: folder of a fit that has delivered a model.
        num_pairs: how many.
        strategy: chooses them.

    Raises:
        UserError: the pool has fewer pairs, or the files of the run are not what they were.
    """
    audit = round_files(run, delivered_round(run)).audit
    if (found := read_audit(audit)) is None:
        raise UserError(f"--run: {audit} is gone, which holds what the model thinks of the pool; give another run")
    prob_a = dict(zip(found["pair_id"].tolist(), found["probability"].tolist(), strict=True))
    if not 1 <= num_pairs <= len(prob_a):
        raise UserError(f"--n: got {num_pairs}; need 1 to {len(prob_a)}, the pairs in the pool of {run}")
    pairs_by_id = {pair.pair_id: pair for pair in _pairs_of(run) if pair.pair_id in prob_a}
    if len(pairs_by_id) < num_pairs:
        raise UserError(
            f"--run: {len(pairs_by_id)} of {len(prob_a)} pool pairs of {run} are in the files that its config names; "
            "have they changed or moved?"
        )
    pairs = [pairs_by_id[pair_id] for pair_id in sorted(pairs_by_id)]
    return [pairs[i] for i in strategy.choose(torch.tensor([prob_a[p.pair_id] for p in pairs]), pairs, num_pairs)]


def _pairs_of(run: Path) -> Iterator[PreferencePair]:
    """The pairs of all files of a run, as its DataModule read them, with labels taken off."""
    data = setting(run, "data", "init_args")
    columns = data.get("columns") or {}
    given = [data[key] for key in ("path", "pool_path", "new_data_path") if data.get(key)]
    paths = [str(path) for one in given for path in (one if isinstance(one, list) else [one])]
    for source in open_sources(paths, data.get("synthetic_pairs", 0), data.get("split_seed", 0)):
        for where, row in source.rows():
            pair = parse_row(row, columns, where, data.get("labels"))
            if isinstance(pair, PreferencePair):
                yield replace(pair, label=None)


def _row(pair: PreferencePair) -> dict[str, Any]:
    """For a person: what the model thinks of it would only sway them."""
    texts = {"prompt": pair.prompt, "response_a": pair.response_a, "response_b": pair.response_b}
    return {"id": str(pair.pair_id), **texts, "label": None}
