"""Short runs of the real module, DataModule and callback on the tiny model."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from ser_lightning.backbone import Backbone
from ser_lightning.callbacks.evolution import EvolutionCallback
from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.reward_module import RewardModule
from ser_lightning.selection import SelectionRule, TopShareRule


def module(model_dir: Path, lr: float = 3e-3, train: str = "full", **kwargs: Any) -> RewardModule:
    backbone = Backbone(str(model_dir), train=train)
    return RewardModule(backbone, optimizer=lambda p: torch.optim.AdamW(p, lr=lr), **kwargs)


def data(path: Path, **kwargs: Any) -> PreferenceDataModule:
    settings = {"seed_fraction": 0.3, "max_length": 64, "pairs_per_step": 8, "cache_dir": "cache"}
    return PreferenceDataModule(str(path), **{**settings, **kwargs})


def evolution(rule: SelectionRule | None = None, **kwargs: Any) -> EvolutionCallback:
    settings = {"max_rounds": 1, "seed_epochs": 1, "epochs_per_round": 1, "folds": 2}
    return EvolutionCallback(rule or TopShareRule(0.5), **{**settings, **kwargs})


def trainer(run: str | Path, *callbacks: Callback, **kwargs: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_epochs": -1,
        "accelerator": "cpu",
        "reload_dataloaders_every_n_epochs": 1,
        "default_root_dir": str(run),
        "logger": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
    }
    checkpoint = ModelCheckpoint(
        dirpath=Path(run) / "checkpoints", save_last=True, every_n_epochs=1, save_on_train_epoch_end=True
    )
    return Trainer(callbacks=[*callbacks, checkpoint], **{**settings, **kwargs})


def fit(
    model_dir: Path, pairs: Path, run: str, *extra: Callback, **kwargs: Any
) -> tuple[RewardModule, EvolutionCallback]:
    """One evolution; `kwargs` go to the callback."""
    seed_everything(0, verbose=False)
    model, callback = module(model_dir), evolution(**kwargs)
    trainer(run, callback, *extra).fit(model, data(pairs))
    return model, callback


def weights(model: RewardModule) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.scorer.trainable_state().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
