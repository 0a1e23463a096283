"""`query`: the pool pairs that are worth a human label, as a file to annotate."""

import json
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ser_lightning.errors import UserError
from ser_lightning.evolution.query import QueryStrategy, load_strategy
from ser_lightning.records import PreferencePair
from ser_lightning.runs.pool import read_pool
from ser_lightning.utils.atomic import write_text_atomically
from ser_lightning.utils.terminal import say


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


def query(run: Path, num_pairs: int, strategy: QueryStrategy) -> list[PreferencePair]:
    """The pool pairs of a run that a strategy asks labels for, without any.

    Raises:
        UserError: the pool has fewer pairs, or the files of the run are not what they were.
    """
    pairs, prob_a = read_pool(run, num_pairs)
    return [pairs[i] for i in strategy.choose(prob_a, pairs, num_pairs)]


def _row(pair: PreferencePair) -> dict[str, Any]:
    """For a person: what the model thinks of it would only sway them."""
    texts = {"prompt": pair.prompt, "response_a": pair.response_a, "response_b": pair.response_b}
    return {"id": str(pair.pair_id), **texts, "label": None}
