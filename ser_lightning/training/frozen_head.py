"""How well a head on the pretrained body would do: what fine-tuning has to beat.

Shapes: n seed pairs, D numbers of a difference (K readings of H).
"""

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ser_lightning.models.reward_model import RewardModel
from ser_lightning.training.linear_head import accuracy_of, choose_penalty, difference_scale, fit_linear_head
from ser_lightning.training.reading_choice import seed_data, seed_differences


def out_of_fold_accuracy(
    differences: Tensor, num_readings: int, target: Tensor, group: Sequence[int], folds: Sequence[Tensor]
) -> float:
    """Share of pairs that heads order right which were solved without their fold; a tie counts half.

    Args:
        differences: (n, D) states of response a minus those of b.
        num_readings: K.
        target: (n,) labels.
        group: n numbers, equal for pairs of one dialogue.
        folds: for each fold (n,) bool, which pairs are in it; together they are all pairs.
    """
    x, groups = differences / difference_scale([differences], num_readings), torch.as_tensor(group)
    margin = torch.zeros(len(x), dtype=torch.float64)
    for fold in folds:
        penalty = choose_penalty(x[~fold], target[~fold], groups[~fold].tolist()).penalty
        margin[fold] = x[fold].double() @ fit_linear_head(x[~fold], target[~fold], penalty)
    return accuracy_of(margin, target)


def frozen_accuracy(trainer: Trainer, reward_model: RewardModel) -> float | None:
    """Accuracy, out of fold, of heads on the pretrained body, over the run's own folds; the same on every rank.

    One pass over the seed, which no round counts: like the other baselines it is no part of evolution. None where the
    body gives states that are not finite, of which training will complain.

    Args:
        trainer: with a `PreferenceDataModule` in a phase that leaves out a fold.
        reward_model: its body has its pretrained weights.
    """
    data = seed_data(trainer)
    reward_model.to(trainer.strategy.root_device)
    pair_id, differences, _ = seed_differences(trainer, reward_model)
    if not bool(torch.isfinite(differences).all()):
        return None
    num_folds = data.phase.num_folds
    folds = [torch.isin(pair_id, data.pair_ids("seed", fold, num_folds)) for fold in range(num_folds)]
    target, group = data.seed_labels(pair_id), data.dialogues(pair_id).tolist()
    found = out_of_fold_accuracy(differences, len(reward_model.readings), target, group, folds)
    return float(trainer.strategy.broadcast(found))
