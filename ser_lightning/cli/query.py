"""`python -m ser_lightning query`: the pool pairs that are worth a human label, as a file to annotate."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from ser_lightning.data.formats import parse_row
from ser_lightning.data.sources import open_sources
from ser_lightning.errors import UserError
from ser_lightning.evaluation.baselines import word_counter
from ser_lightning.records import PreferencePair
from ser_lightning.runs.files import delivered_round, read_audit, round_files, setting
from ser_lightning.utils.atomic import write_text_atomically

MAX_CANDIDATES = 5000
"""Their similarities are held in memory, each to each."""
MAX_WORDS = 5000


class QueryStrategy(Protocol):
    """Anything that can be named as `--strategy`."""

    def choose(self, prob_a: Tensor, pairs: Sequence[PreferencePair], num_pairs: int) -> list[int]:
        """Places of the pairs to ask for.

        Args:
            prob_a: (N,) the delivered model's probability that a wins.
            pairs: N pool pairs, without labels.
            num_pairs: how many, at most N.
        """
        ...


class CoverUncertain:
    """Of the least sure pairs those that stand for as many others as can be: uncertain, typical and diverse.

    Greedy facility location (Wei, Iyer and Bilmes, 2015, "Submodularity in data subset selection and active learning"):
    the next pair is the one that adds most to the sum over candidates of the similarity to the closest chosen one,
    weighted by how unsure the model is of the candidate. Similarity is the cosine of weighted word counts.

    Args:
        candidates_per_pick: how many of the least sure pairs stand for election, for each that is chosen.
    """

    def __init__(self, candidates_per_pick: int = 10) -> None:
        if candidates_per_pick < 1:
            raise UserError(f"strategy.candidates_per_pick: got {candidates_per_pick}; need at least 1")
        self.candidates_per_pick = candidates_per_pick

    def choose(self, prob_a: Tensor, pairs: Sequence[PreferencePair], num_pairs: int) -> list[int]:
        """As `QueryStrategy` says."""
        unsure = 1 - (2 * prob_a - 1).abs()
        num_candidates = max(num_pairs, min(self.candidates_per_pick * num_pairs, MAX_CANDIDATES))
        places = unsure.argsort(descending=True, stable=True)[:num_candidates]
        similarity = word_similarity([_text_of(pairs[place]) for place in places.tolist()])
        chosen = cover(similarity, unsure[places], num_pairs)
        return places[torch.tensor(chosen, dtype=torch.long)].tolist()


class MostUncertain:
    """The least sure pairs, whatever they are."""

    def choose(self, prob_a: Tensor, pairs: Sequence[PreferencePair], num_pairs: int) -> list[int]:
        """As `QueryStrategy` says."""
        return (2 * prob_a - 1).abs().argsort(stable=True)[:num_pairs].tolist()


def cover(similarity: Tensor, weight: Tensor, num_chosen: int) -> list[int]:
    """Greedy maximum of sum_i weight_i max_j similarity_ij over sets of chosen j.

    Args:
        similarity: (M, M), at least 0.
        weight: (M,), at least 0.
        num_chosen: at most M.

    Returns:
        Places in the order of choice.
    """
    best = torch.zeros(len(similarity))
    is_free = torch.ones(len(similarity), dtype=torch.bool)
    chosen: list[int] = []
    for _ in range(num_chosen):
        gain = weight @ (similarity - best[:, None]).clamp_min(0)
        place = int(gain.masked_fill(~is_free, -1.0).argmax())
        chosen.append(place)
        is_free[place] = False
        best = torch.maximum(best, similarity[:, place])
    return chosen


def word_similarity(texts: Sequence[str]) -> Tensor:
    """(M, M) cosine similarities of log word counts, weighted by how rare a word is among the texts."""
    counts = word_counter(texts, MAX_WORDS).transform(texts)
    rarity = np.log1p(len(texts) / np.bincount(counts.indices, minlength=counts.shape[1]))
    x = torch.from_numpy(counts.log1p().multiply(rarity).toarray()).float()
    x = torch.nn.functional.normalize(x)
    return (x @ x.T).clamp_min(0)


def main(argv: list[str]) -> None:
    """Command line of `python -m ser_lightning query`."""
    parser = ArgumentParser(
        prog="python -m ser_lightning query", description=__doc__, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--run", type=str, required=True, help="run folder of a reward model")
    parser.add_argument("--n", type=int, default=100, help="how many pairs")
    parser.add_argument("--to", type=str, default="to_label.jsonl", help="file to write")
    parser.add_argument(
        "--strategy",
        type=QueryStrategy,
        default={"class_path": "ser_lightning.CoverUncertain"},
        help="which pairs; MostUncertain, or a class of your own",
    )
    try:
        args = parser.instantiate_classes(parser.parse_args(argv))
    except ArgumentError as error:
        raise UserError(f"query: {' '.join(str(error).split())}") from error
    if Path(args.to).exists():  # not even with a flag
        raise UserError(f"--to: {args.to} is there already, perhaps with labels in it; name another file")
    chosen = query(Path(args.run), args.n, args.strategy)
    write_text_atomically(Path(args.to), "".join(json.dumps(_row(pair), ensure_ascii=False) + "\n" for pair in chosen))
    print(
        f"{len(chosen)} pairs to label: {args.to}\n"
        'Set "label" to 1 where response_a is better and 0 where response_b is, leave null else; then go on '
        f"with\n  python -m ser_lightning fit --ckpt_path {args.run}/checkpoints/last.ckpt --run_dir NEW "
        f"--data.new_data_path {args.to}"
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


def _text_of(pair: PreferencePair) -> str:
    return " ".join([pair.prompt[-1]["content"] if pair.prompt else "", pair.response_a, pair.response_b])


def _row(pair: PreferencePair) -> dict[str, Any]:
    """For a person: what the model thinks of it would only sway them."""
    texts = {"prompt": pair.prompt, "response_a": pair.response_a, "response_b": pair.response_b}
    return {"id": str(pair.pair_id), **texts, "label": None}
