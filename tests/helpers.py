"""Short runs of the real module, DataModule and callback on the tiny model, and readers of what commands leave."""

import csv
import json
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ser_lightning.__main__ import main
from ser_lightning.callbacks.evolution import EvolutionCallback
from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.evolution.selection import SelectionRule, TopShareRule
from ser_lightning.models.backbone import Backbone
from ser_lightning.models.readings import QUESTION
from ser_lightning.modules.reward import RewardModule
from ser_lightning.records import Turn


def log_odds(folder, turns, question=QUESTION):
    """What the language model itself says of one conversation."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer.apply_chat_template(
        [*turns, {"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits[0, -1].log_softmax(0)
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No"))
    return float(found[yes] - found[no])


def module(model_dir: Path, lr: float = 3e-3, train: str = "full", **kwargs: Any) -> RewardModule:
    backbone = Backbone(str(model_dir), train=train)
    return RewardModule(backbone, optimizer=lambda p: torch.optim.AdamW(p, lr=lr), **{"reading": "last", **kwargs})


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
    return {k: v.clone() for k, v in model.reward_model.trainable_state().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


OWN_CONFIG = "runs/mine/config.yaml"
"""What commands that go on from a run call its config."""


def write_own_config(capsys: Any, words: Iterable[str]) -> None:
    """A run's own config where a command names it."""
    if OWN_CONFIG in words:
        with pytest.raises(SystemExit):
            main(["fit", "--config", "rm.yaml", "--print_config"])
        Path(OWN_CONFIG).parent.mkdir(parents=True, exist_ok=True)
        Path(OWN_CONFIG).write_text(capsys.readouterr().out)


def problems_of(capsys: Any, *argv: Any) -> list[str]:
    """What a command that cannot work says, a line each, and nothing else of a program."""
    capsys.readouterr()
    assert main([*map(str, argv)]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and "usage:" not in said
    return [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]


def save_language_model(folder: Path, tokenizer: PreTrainedTokenizerBase, **config: int) -> str:
    """A random Llama of the given sizes and its tokenizer; the folder."""
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_reward_model(folder: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, **config: Any) -> None:
    """A reward model as `export` writes it; rewards of different texts differ clearly."""
    settings = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "num_labels": 1, "initializer_range": 0.3}
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    LlamaForSequenceClassification(LlamaConfig(**settings, **ids, **config)).save_pretrained(folder)
    torch.random.set_rng_state(state)
    tokenizer.save_pretrained(folder)
    written = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**written, "model_max_length": max_length}))


@lru_cache(maxsize=1)
def _plain_model(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForSequenceClassification.from_pretrained(folder).float().eval()
    return model, AutoTokenizer.from_pretrained(folder)


def plain_reward(folder: Path, prompt: str | list[Turn], response: str) -> tuple[float, int]:
    """Reward and number of tokens by transformers alone."""
    model, tokenizer = _plain_model(folder)
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    ids = tokenizer.apply_chat_template(
        [*turns, {"role": "assistant", "content": response}], tokenize=True, return_dict=False
    )
    with torch.no_grad():
        return float(model(torch.tensor([ids])).logits), len(ids)


def break_off(monkeypatch: pytest.MonkeyPatch, step: int, *names: str) -> None:
    """The n-th call of these functions of `os`, all counted together, is where a process is killed."""
    done = []

    def breaking(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            done.append(call)
            if len(done) == step:
                raise KeyboardInterrupt
            return call(*args, **kwargs)

        return wrapped

    for name in names:
        monkeypatch.setattr(os, name, breaking(getattr(os, name)))


def kept_for_backward(model: torch.nn.Module, run: Callable[[], object]) -> int:
    """Bytes that autograd keeps of a forward pass, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def slow(*values):
    """Values of a parameter that are more of the same, which `make test` leaves to `make test-all`."""
    return [pytest.param(one, marks=pytest.mark.slow) for one in values]


def often(cases, *names):
    """Cases by name, of which all but those of the names are `slow`."""
    assert {*names} <= cases.keys()
    return [pytest.param(one, id=name, marks=() if name in names else pytest.mark.slow) for name, one in cases.items()]
