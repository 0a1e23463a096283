"""`query`: the pool pairs that are worth a human label, as a file to annotate."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ser_lightning.data.labels import OWN_LABEL
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.evolution.query import QueryStrategy, load_strategy
from ser_lightning.labelling.label_file import labels_of_run, misplaced
from ser_lightning.labelling.merge import pair_row
from ser_lightning.records import PreferencePair
from ser_lightning.runs.pool import read_pool
from ser_lightning.utils.atomic import json_lines_problems, write_text_atomically
from ser_lightning.utils.terminal import say


def main(args: Namespace) -> None:
    """Run the command with its flags."""
    if Path(args.to).exists():  # not even with a flag
        raise UserError(f"--to: {args.to} is there already, perhaps with labels in it; name another file")
    labels = labels_of_run(Path(args.run))
    raise_problems([*json_lines_problems("--to", args.to), *misplaced("--to", Path(args.to), labels)])
    chosen = query(Path(args.run), args.n, load_strategy(args.strategy))
    write_text_atomically(Path(args.to), "".join(json.dumps(_row(pair), ensure_ascii=False) + "\n" for pair in chosen))
    say(
        f"{len(chosen)} pairs to label: {args.to}",
        f'Set "{OWN_LABEL}" to "a" where response_a is better, "b" where response_b is, "tie" where neither is; leave '
        "null else. Then go on with",
        f"  python -m ser_lightning fit --ckpt_path {shlex.quote(f'{args.run}/checkpoints/last.ckpt')} --run_dir NEW "
        f"--data.new_data_path {shlex.quote(args.to)}",
        "Or label pairs by key on a page, whose export needs no edit",
        f"  python -m ser_lightning label --run {shlex.quote(args.run)} --n {args.n} --strategy {args.strategy}",
    )


def query(run: Path, num_pairs: int, strategy: QueryStrategy) -> list[PreferencePair]:
    """The pool pairs of a run that a strategy asks labels for, without any; says where the pool has lost pairs.

    Raises:
        UserError: the pool has fewer pairs, or the files of the run are not what they were.
    """
    pool = read_pool(run, num_pairs)
    say(*pool.lost)
    return [pool.pairs[i] for i in strategy.choose(pool.prob_a, pool.pairs, num_pairs)]


def _row(pair: PreferencePair) -> dict[str, Any]:
    """For a person: what the model thinks of it would only sway them."""
    return pair_row(replace(pair, source_id=None), None)
