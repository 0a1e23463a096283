"""The pool of a run, as texts: what people can label next, and what its seed model has not seen."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ser_lightning.data.formats import earlier_prompts, parse_rows, prompt_hash
from ser_lightning.data.sources import open_sources
from ser_lightning.data.store import join_dialogues
from ser_lightning.errors import UserError
from ser_lightning.records import PreferencePair, Turn
from ser_lightning.runs.config import setting
from ser_lightning.runs.files import delivered_round, read_rounds, round_files
from ser_lightning.runs.pair_tables import read_audit, read_test_scores


@dataclass(frozen=True)
class Pool:
    """The pool pairs of a run that its files still have."""

    pairs: list[PreferencePair]
    """In the order of their ids, without labels."""
    prob_a: Tensor
    """(N,) probability that a wins."""
    lost: list[str]
    """A line for the user where the files have lost pairs of the pool, else nothing."""


def read_pool(run: Path, num_pairs: int = 1) -> Pool:
    """The pool of a run, as its delivered round scored it; pairs that arrived since, as the last round did.

    Raises:
        UserError: the pool has fewer pairs, or the files of the run are not what they were.
    """
    delivered, last = (_probabilities(run, number) for number in (delivered_round(run), len(read_rounds(run)) - 1))
    prob_a = {pair_id: delivered.get(pair_id, prob) for pair_id, prob in last.items()}
    if not 1 <= num_pairs <= len(prob_a):
        raise UserError(f"--n: got {num_pairs}; need 1 to {len(prob_a)}, the pairs in the pool of {run}")
    pairs_by_id = {pair.pair_id: pair for pair in _pairs_of(run) if pair.pair_id in prob_a}
    if len(pairs_by_id) < num_pairs:
        raise UserError(
            f"--run: {len(pairs_by_id)} of {len(prob_a)} pool pairs of {run} are in the files that its config names; "
            "have they changed or moved?"
        )
    pairs = [pairs_by_id[pair_id] for pair_id in sorted(pairs_by_id)]
    return Pool(pairs, torch.tensor([prob_a[pair.pair_id] for pair in pairs]), _lost(run, len(prob_a) - len(pairs)))


def _probabilities(run: Path, number: int) -> dict[int, float]:
    """By the id of each pair that was in the pool in a round the probability that a wins."""
    audit = round_files(run, number).audit
    if (found := read_audit(audit)) is None:
        raise UserError(f"--run: {audit} is gone, which holds what the model thinks of the pool; give another run")
    return dict(zip(found["pair_id"].tolist(), found["probability"].tolist(), strict=True))


def _lost(run: Path, number: int) -> list[str]:
    line = f"warning: --run: the files that the config of {run} names have lost {number:,} pairs of its pool; put back "
    return [f"{line}what they held to have these pairs too"] if number else []


def in_trained_dialogues(run: Path, prompts: Iterable[list[Turn]]) -> list[bool]:
    """Of each prompt, whether a model of a run may know its dialogue: of all pairs but those of pool and test.

    Dialogues are those of the splits: prompts that continue one another are of one. The pool is that of the delivered
    round: what people have labelled by then is no part of it, whatever an earlier round did not know.

    Args:
        prompts: read once, at the end; only a hash of each is held.

    Raises:
        UserError: the files that its config names are gone, or have lost pairs.
    """
    files = round_files(run, delivered_round(run))
    tables = read_audit(files.audit), read_test_scores(files.test_scores)
    pool, test = (set() if table is None else set(table["pair_id"].tolist()) for table in tables)
    unseen, lost, known, continuations = pool | test, pool, set[int](), set[tuple[int, int]]()
    for pair in _pairs_of(run):
        lost.discard(pair.pair_id)
        if pair.pair_id not in unseen:
            known.add(prompt_hash(pair.prompt))
            continuations |= _continued(pair.prompt)
    if lost:  # then others that the model was trained on may be gone as well
        line = f"{run}: the files that its config names have lost {len(lost):,} pairs of its pool"
        raise UserError(f"{line}; put them back")
    asked = []
    for prompt in prompts:
        asked.append(prompt_hash(prompt))
        continuations |= _continued(prompt)
    dialogues = join_dialogues([*known, *asked], continuations)
    trained = set(dialogues[: len(known)])
    return [dialogue in trained for dialogue in dialogues[len(known) :]]


def _continued(prompt: list[Turn]) -> set[tuple[int, int]]:
    return {(earlier, prompt_hash(prompt)) for earlier in earlier_prompts(prompt)}


def files_of_run(run: Path) -> list[str]:
    """The folder of a run, and the files of pairs that its config names, as far as this module reads them."""
    try:
        return [str(run), *_data_paths(setting(run, "data", "init_args"))]
    except UserError:
        return [str(run)]


def _data_paths(data: Mapping[str, Any]) -> list[str]:
    given = [data[key] for key in ("path", "pool_path", "new_data_path") if data.get(key)]
    return [str(path) for one in given for path in (one if isinstance(one, list) else [one])]


def _pairs_of(run: Path) -> Iterator[PreferencePair]:
    """The pairs of all files of a run, as its DataModule read them, with labels taken off."""
    data = setting(run, "data", "init_args")
    columns = data.get("columns") or {}
    for source in open_sources(_data_paths(data), data.get("synthetic_pairs", 0), data.get("split_seed", 0)):
        for where, row in source.rows():
            for pair in parse_rows(row, columns, where, data.get("labels")):
                if isinstance(pair, PreferencePair):
                    yield replace(pair, label=None)
