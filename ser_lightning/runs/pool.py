"""The pool of a run, as texts: what people can label next, and what its seed model has not seen."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ser_lightning.data.formats import earlier_prompts, parse_rows, prompt_hash
from ser_lightning.data.sources import open_sources
from ser_lightning.data.store import join_dialogues
from ser_lightning.errors import UserError
from ser_lightning.records import PreferencePair, Turn
from ser_lightning.runs.config import setting
from ser_lightning.runs.files import delivered_round, round_files
from ser_lightning.runs.pair_tables import read_audit, read_test_scores


def read_pool(run: Path, num_pairs: int = 1) -> tuple[list[PreferencePair], Tensor]:
    """The pool pairs of a run in the order of their ids, without labels, and the probability (N,) that a wins of each.

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
    return pairs, torch.tensor([prob_a[pair.pair_id] for pair in pairs])


def in_trained_dialogues(run: Path, prompts: Sequence[list[Turn]]) -> list[bool]:
    """Of each prompt, whether the seed model of a run may know its dialogue: of all pairs but those of pool and test.

    Dialogues are those of the splits: prompts that continue one another are of one.

    Raises:
        UserError: the files that its config names are gone.
    """
    unseen: set[int] = set()
    for number in {0, delivered_round(run)}:
        files = round_files(run, number)
        for table in (read_audit(files.audit), read_test_scores(files.test_scores)):
            unseen |= set() if table is None else set(table["pair_id"].tolist())
    known, continuations = set[int](), set[tuple[int, int]]()
    for pair in _pairs_of(run):
        if pair.pair_id not in unseen:
            known.add(prompt_hash(pair.prompt))
            continuations |= _continued(pair.prompt)
    for prompt in prompts:
        continuations |= _continued(prompt)
    dialogues = join_dialogues([*known, *map(prompt_hash, prompts)], continuations)
    trained = set(dialogues[: len(known)])
    return [dialogue in trained for dialogue in dialogues[len(known) :]]


def _continued(prompt: list[Turn]) -> set[tuple[int, int]]:
    return {(earlier, prompt_hash(prompt)) for earlier in earlier_prompts(prompt)}


def _pairs_of(run: Path) -> Iterator[PreferencePair]:
    """The pairs of all files of a run, as its DataModule read them, with labels taken off."""
    data = setting(run, "data", "init_args")
    columns = data.get("columns") or {}
    given = [data[key] for key in ("path", "pool_path", "new_data_path") if data.get(key)]
    paths = [str(path) for one in given for path in (one if isinstance(one, list) else [one])]
    for source in open_sources(paths, data.get("synthetic_pairs", 0), data.get("split_seed", 0)):
        for where, row in source.rows():
            for pair in parse_rows(row, columns, where, data.get("labels")):
                if isinstance(pair, PreferencePair):
                    yield replace(pair, label=None)
