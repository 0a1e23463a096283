"""Short runs of the SFT stage on the tiny model, and what plain transformers makes of the same."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from transformers import AutoModelForCausalLM

from ser_lightning.datamodules.responses import ResponseDataModule
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.modules.sft import SFTModule
from ser_lightning.records import Padded

QUIET = ("--trainer.accelerator=cpu", "--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false")


def backbone(path: str | Path, train: str = "full", **kwargs: Any) -> Backbone:
    return Backbone(str(path), train=train, lora=LoraSettings(dropout=0.0), **kwargs)


def sft(path: str | Path, train: str = "full", lr: float = 3e-3, **kwargs: Any) -> SFTModule:
    return SFTModule(backbone(path, train), optimizer=lambda p: torch.optim.AdamW(p, lr=lr), **kwargs)


def responses(path: Path, **kwargs: Any) -> ResponseDataModule:
    settings = {"seed_fraction": 0.3, "max_length": 64, "responses_per_step": 8, "cache_dir": "cache"}
    return ResponseDataModule(str(path), **{**settings, **kwargs})


def loaded(module: SFTModule) -> SFTModule:
    """The module with its weights, as a trainer leaves it before the first step."""
    seed_everything(0, verbose=False)
    module.configure_model()
    return module


def sft_flags(model: str | Path, pairs: str | Path, train: str = "full") -> list[str]:
    """`--config sft.yaml` and the flags that make it a run of a second."""
    return [
        *("--config", "sft.yaml"),
        *(f"--model.backbone.path={model}", f"--model.backbone.train={train}", "--model.backbone.lora.dropout=0.0"),
        *(f"--data.path={pairs}", "--data.max_length=64", "--data.responses_per_step=8", "--data.seed_fraction=0.3"),
        *("--model.optimizer.init_args.lr=0.01", "--trainer.max_epochs=2", *QUIET),
    ]


def generate_flags(model: str | Path, pairs: str | Path, train: str = "full") -> list[str]:
    """`--config generate.yaml` and the flags that make it a run of a second."""
    return [
        *("--config", "generate.yaml", f"--model.backbone.path={model}", f"--model.backbone.train={train}"),
        *(f"--data.path={pairs}", "--data.max_length=64", "--model.sampling.max_new_tokens=6", *QUIET),
    ]


def plain_logits(folder: str | Path, ids: torch.Tensor) -> torch.Tensor:
    """(R, T, V) logits of a transformers folder."""
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=ids).logits


def own_logits(module: SFTModule, ids: torch.Tensor) -> torch.Tensor:
    """(R, T, V) logits of a module's policy."""
    policy = module.policy.eval()
    with torch.no_grad():
        return policy.head("policy")(policy.hidden("policy", Padded(ids, torch.ones_like(ids))))
