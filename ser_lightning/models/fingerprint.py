"""What saved weights belong to: a base model and a chat template, and whether anything was trained at all."""

import hashlib
from collections.abc import Mapping
from operator import itemgetter
from typing import TypedDict

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ser_lightning.errors import UserError, raise_problems

_MAX_VALUES = 4096


class Identity(TypedDict):
    """Saved beside weights, and compared where they are loaded."""

    base: str
    """Fingerprint of the frozen base, empty where every weight is trained and saved."""
    template: str
    """Fingerprint of the chat template."""


def identity_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Identity:
    """The base and the template that a model is trained with.

    Args:
        model: a transformers model, as peft and quantisation may have changed it.
        tokenizer: with its chat template.
    """
    return Identity(base=base_fingerprint(model), template=template_fingerprint(tokenizer))


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits that change with the chat template."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]


def base_fingerprint(model: nn.Module) -> str:
    """16 hex digits of the frozen norms, biases and embeddings, a sample of each, rounded to bfloat16.

    These are what quantisation leaves alone, so a base has one fingerprint in 4, 16 and 32 bits. Empty if nothing of
    them is frozen.
    """
    content = hashlib.sha256()
    found = False
    modules = ((_plain_name(name), module) for name, module in model.named_modules())
    for name, module in sorted(modules, key=itemgetter(0)):
        for own, p in module.named_parameters(recurse=False):
            is_kept = p.ndim == 1 or isinstance(module, nn.Embedding)
            if p.requires_grad or not p.dtype.is_floating_point or not is_kept:
                continue
            values = p.detach().flatten()
            sample = values[:: max(1, len(values) // _MAX_VALUES)].to(torch.bfloat16).cpu().view(torch.int16)
            content.update(f"{name}.{own} {tuple(p.shape)}".encode() + sample.numpy().tobytes())
            found = True
    return content.hexdigest()[:16] if found else ""


def _plain_name(name: str) -> str:
    """A module's name before peft wrapped it."""
    return name.replace("base_model.model.", "").replace(".base_layer", "")


def check_identity(what: str, saved: Mapping[str, str] | None, own: Identity) -> None:
    """Refuse weights that were trained on another base or through another template.

    Args:
        what: the file, for the message.
        saved: what was saved beside the weights; None from a version that saved nothing.
        own: of the model that is to take the weights.

    Raises:
        UserError: with a line for each that differs.
    """
    problems = []
    if saved and saved["base"] and own["base"] and saved["base"] != own["base"]:
        problems.append(
            f"{what}: was trained on another base model (fingerprint {saved['base']}, this one has {own['base']}); set "
            "backbone.path to the model that it was trained on"
        )
    if saved and saved["template"] != own["template"]:
        problems.append(
            f"{what}: was trained through another chat template (fingerprint {saved['template']}, this one has "
            f"{own['template']}); use the tokenizer and backbone.template of the training"
        )
    raise_problems(problems)


def check_trained(what: str, weights: Mapping[str, Tensor]) -> None:
    """Refuse adapters that still are what they start as: all of their second factors zero.

    Args:
        what: the file, for the message.
        weights: trained tensors by name.

    Raises:
        UserError: if no adapter was trained.
    """
    second = [tensor for name, tensor in weights.items() if ".lora_B." in name]
    if second and not any(bool(tensor.any()) for tensor in second):
        raise UserError(
            f"{what}: all of its {len(second)} adapters are zero, as before training; take a round that has been "
            "trained, such as RUN/rounds/0/model.pt"
        )
