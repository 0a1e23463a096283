"""Which pool pairs are worth a human label, by what a model is unsure of."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ser_lightning.errors import UserError
from ser_lightning.evaluation.baselines import word_counter
from ser_lightning.records import PreferencePair

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


def _text_of(pair: PreferencePair) -> str:
    return " ".join([pair.prompt[-1]["content"] if pair.prompt else "", pair.response_a, pair.response_b])
