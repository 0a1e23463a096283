"""Generated pairs of the synthetic dataset that no run has seen, judged by the gold reward."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ser_lightning import Scorer
from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.records import PreferencePair
from ser_lightning.synthetic.world import generate_pairs

NUM_PAIRS, CHUNK = 20_000, 2_000
HARM = 0.01
"""Accuracy that a delivered model may lose against its own seed model."""


class HeldOut:
    """Pairs that no run has seen, and which side the gold reward prefers.

    Args:
        num_pairs: how many.
    """

    def __init__(self, num_pairs: int = NUM_PAIRS) -> None:
        pairs = list(generate_pairs(num_pairs, seed=-1))
        random.Random(0).shuffle(pairs)
        self.gold = torch.tensor([float(p.gold_a > p.gold_b) for p in pairs])
        self.label = torch.tensor([float(p.label) for p in pairs])
        """What the noisy labels of the dataset say, which is what a stated probability is about."""
        self.pairs = [
            PreferencePair(i, [{"role": "user", "content": p.prompt}], p.response_a, p.response_b, None)
            for i, p in enumerate(pairs)
        ]

    def credits(self, run: Path, rounds: list[int]) -> Iterator[Tensor]:
        """Credit of each pair (1 right, 0.5 tie, 0 wrong) by some rounds' models: (rounds, pairs), in chunks of pairs.

        Args:
            run: folder of a run.
            rounds: whose models.
        """
        start = 0
        for margins in self.margins(run, rounds):
            gold = self.gold[start : start + margins.shape[1]]
            yield torch.stack([half_credit(margin, gold) for margin in margins])
            start += margins.shape[1]

    def margins(self, run: Path, rounds: list[int]) -> Iterator[Tensor]:
        """Reward of a minus that of b by some rounds' models: (rounds, pairs), in chunks of pairs.

        Args:
            run: folder of a run.
            rounds: whose models.
        """
        scorer = Scorer.load(run)
        models = [torch.load(run / f"rounds/{n}/model.pt", weights_only=True)["weights"] for n in rounds]
        for name, weight in scorer.reward.reward_model.named_parameters():
            weight.requires_grad_(name in models[0])  # what was trained is what `model.pt` holds
        for start in range(0, len(self.pairs), CHUNK):
            encoded = [pair for pair in scorer.encode(self.pairs[start : start + CHUNK]) if pair is not None]
            found = []
            for weights in models:
                scorer.reward.reward_model.load_trainable_state(weights)
                first, second = scorer.score_encoded(encoded)
                found.append(first - second)
            yield torch.stack(found)

    def compare(self, run: Path, rounds: list[int], ends_early: bool = True) -> dict[str, Any]:
        """Accuracy of some rounds' models on the same pairs, and of each the difference to the first.

        Args:
            run: folder of a run.
            rounds: 0 first.
            ends_early: where it is settled which of them are more than `HARM` worse than the first.
        """
        credit = torch.empty(len(rounds), 0)
        for chunk in self.credits(run, rounds):
            credit = torch.cat([credit, chunk], 1)
            change = credit[1:] - credit[:1]
            error = change.std(1) / change.shape[1] ** 0.5
            if ends_early and bool(((change.mean(1) + HARM).abs() > 4 * error).all()):
                break
        names = [str(n) for n in rounds]
        return {
            "pairs": credit.shape[1],
            "accuracy": dict(zip(names, credit.mean(1).tolist(), strict=True)),
            "change": dict(zip(names[1:], change.mean(1).tolist(), strict=True)),
            "standard_error": dict(zip(names[1:], error.tolist(), strict=True)),
        }
