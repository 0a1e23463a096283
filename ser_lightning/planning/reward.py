"""What a run of a reward model will hold in memory, in training and in labelling."""

from typing import Any

import numpy as np

from ser_lightning.data.layouts import Layout
from ser_lightning.data.packing import Tokens
from ser_lightning.data.reader import PairStore
from ser_lightning.models.reward_model import RewardModel
from ser_lightning.modules.reward import RewardModule
from ser_lightning.planning.memory import (
    auto_budgets,
    count_weights,
    device_bytes,
    gathered_bytes,
    gradient_bytes,
    keep_one_shard,
    labelling_activations,
    optimizer_bytes,
    shape_of,
    trained_weights,
    training_activations,
    workspace_bytes,
)
from ser_lightning.planning.policy import summed
from ser_lightning.planning.workload import largest_batch
from ser_lightning.training.schedule import make_optimizer
from ser_lightning.training.strategies import check_optimizer


def reward_memory(
    module: RewardModule,
    reward_model: RewardModel,
    pairs: tuple[PairStore, np.ndarray],
    layout: Layout,
    budgets: tuple[Tokens, Tokens],
    pairs_per_step: int,
    precision: str,
    device: str,
    num_shards: int | None,
) -> dict[str, Any]:
    """Bytes by kind on one device, of training and of labelling; leaves the reward model with the shard of one rank.

    Args:
        reward_model: on the meta device.
        pairs: encoded pairs, and the (N,) rows of them that are read.
        budgets: most padded tokens in a micro-batch of training and of labelling.
        pairs_per_step: pairs of an optimizer step, over all devices.
        num_shards: ranks that share the weights of the body; None where each holds them whole.
    """
    backbone = module.backbone
    copies, gathered = workspace_bytes(reward_model, precision), (0, 0)
    if num_shards is not None:
        gathered = gathered_bytes(reward_model)
        keep_one_shard(reward_model, num_shards)
    weights, trained = count_weights(reward_model), trained_weights(reward_model)
    shape = shape_of(reward_model.model, backbone, precision, device)
    auto = auto_budgets(reward_model, backbone, precision, device, device_bytes(device)[1])
    settled = [own if given == "auto" else given for given, own in zip(budgets, auto, strict=True)]
    train_tokens = largest_batch(*pairs, layout, settled[0], pairs_per_step)
    label_tokens = largest_batch(*pairs, layout, settled[1])
    optimizer = make_optimizer(module.optimizer, trained, "model.optimizer")
    check_optimizer(optimizer, num_shards is not None and backbone.train == "full", "model.optimizer")
    state, gradients = optimizer_bytes(optimizer), gradient_bytes(trained)
    adapters = weights["adapters"].num_bytes
    rows = {
        "weights": (sum(w.num_bytes for w in weights.values()) - adapters,) * 2,
        "adapters": (adapters,) * 2,
        "optimiser": (state,) * 2,
        "gradients": (gradients, 0),
        "copy of the start": (gradients if device == "cpu" else 0,) * 2,
        "activations, estimate": (
            training_activations(shape, backbone.train, backbone.gradient_checkpointing, train_tokens),
            labelling_activations(shape, label_tokens),
        ),
        "workspace, estimate": (copies + gathered[0], copies + gathered[1]),
    }
    uses = ("training", "labelling")
    kinds = {kind: dict(zip(uses, pair, strict=True)) for kind, pair in rows.items()}
    budget_names = {"training": "data.tokens_per_batch", "labelling": "data.tokens_per_scoring_batch"}
    return summed(kinds, uses, {"training": train_tokens, "labelling": label_tokens}, budget_names, [optimizer])
