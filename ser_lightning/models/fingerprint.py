"""What saved weights belong to: a base model and a chat template, and whether anything was trained at all."""

import hashlib
from collections.abc import Mapping
from operator import itemgetter
from typing import Any, TypedDict

import numpy as np
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ser_lightning.errors import UserError, raise_problems

_MAX_VALUES = 4096
_NUM_PROJECTIONS = 8
_SAME, _SAME_IN_4_BITS = 0.02, 0.4
"""Largest root mean square difference of the projections of one matrix. Rounding to 16 bits makes some 0.002 and to 4
bits 0.1; unrelated matrices have 1.4, a negated one 2."""


class Identity(TypedDict):
    """Saved beside weights, and compared where they are loaded."""

    base: str
    """Fingerprint of the frozen base, empty where every weight is trained and saved."""
    template: str
    """Fingerprint of the chat template."""
    matrices: dict[str, list[float]]
    """Projections of each frozen matrix, see `matrix_projections`."""
    is_4bit: bool
    """Whether the matrices were in 4 bits when they were projected."""


def identity_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Identity:
    """The base and the template that a model is trained with.

    Args:
        model: a transformers model, as peft and quantisation may have changed it.
    """
    return Identity(
        base=base_fingerprint(model),
        template=template_fingerprint(tokenizer),
        matrices=matrix_projections(model),
        is_4bit=any(isinstance(module, Linear4bit) for module in model.modules()),
    )


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
            if p.requires_grad or not p.dtype.is_floating_point or not is_kept or p.device.type == "meta":
                continue
            values = p.detach().flatten()
            sample = values[:: max(1, len(values) // _MAX_VALUES)].to(torch.bfloat16).cpu().view(torch.int16)
            content.update(f"{name}.{own} {tuple(p.shape)}".encode() + sample.numpy().tobytes())
            found = True
    return content.hexdigest()[:16] if found else ""


def matrix_projections(model: nn.Module) -> dict[str, list[float]]:
    """Eight random projections of every frozen matrix, by name, in units of its norm.

    A hash would change with the number format. A projection changes little, and much with the matrix. Reads every
    weight once.

    Args:
        model: a transformers model, as peft and quantisation may have changed it; adapters are left out.
    """
    found = {}
    for prefix, module in model.named_modules():
        for own, p in module.named_parameters(recurse=False):
            name = _plain_name(f"{prefix}.{own}")
            if p.requires_grad or p.device.type == "meta" or ".lora_" in name:
                continue
            if isinstance(module, Linear4bit) and own == "weight":
                found[name] = _projections(dequantize_4bit(p.data, p.quant_state))  # type: ignore[attr-defined]
            elif p.ndim > 1 and p.dtype.is_floating_point:
                found[name] = _projections(p.detach())
    return dict(sorted(found.items()))


def _projections(weight: Tensor) -> list[float]:
    """r^T W c / |W| for pairs of random signs r, c: of unit variance whatever the shape."""
    matrix = weight.reshape(-1, weight.shape[-1])
    generator = torch.Generator().manual_seed(0)
    rows, columns = (
        (torch.randint(2, (_NUM_PROJECTIONS, n), generator=generator, device="cpu") * 2.0 - 1).to(matrix.device)
        for n in matrix.shape
    )
    total, square = torch.zeros(_NUM_PROJECTIONS, device=matrix.device), 0.0
    for part, signs in zip(matrix.split(8192), rows.split(8192, dim=1), strict=True):
        part = part.float()
        total += ((signs @ part) * columns).sum(1)
        square += float(part.square().sum())
    norm = max(square**0.5, 1e-30)
    return [round(float(value) / norm, 5) for value in total]


def other_matrix(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """The first matrix that is another one than was trained on; None if there is none, or none was noted.

    Args:
        saved: `matrices` and `is_4bit` of an `Identity`.
        own: the same of the model that is to take the weights.
    """
    expected, found = saved.get("matrices"), own.get("matrices")  # runs of earlier versions have none
    limit = _SAME_IN_4_BITS if saved.get("is_4bit") or own.get("is_4bit") else _SAME
    if not expected or not found:
        return None
    for name in sorted(expected.keys() | found.keys()):
        if name not in expected or name not in found:
            return name
        difference = np.subtract(expected[name], found[name])
        if not np.sqrt(np.square(difference).mean()) <= limit:
            return name
    return None


def _plain_name(name: str) -> str:
    """A module's name before peft wrapped it."""
    return name.replace("base_model.model.", "").replace(".base_layer", "")


def check_stage(checkpoint: Mapping[str, Any], *stages: str) -> None:
    """`UserError` where a checkpoint is of another kind of module than the one that is to take it.

    Args:
        stages: shipped configs whose runs write checkpoints of the right kind.
    """
    found = "rm.yaml" if "reward_scale" in checkpoint else "ppo.yaml" if "rl" in checkpoint else "sft.yaml"
    if found not in stages:
        fix = "give one of such a run"
        if "rm.yaml" not in (found, *stages):
            fix = "to start from its policy, leave --ckpt_path out and set model.backbone.path to its run folder"
        line = f"checkpoint: got one that no run of {' or '.join(stages)} wrote, so it cannot be resumed"
        raise UserError(f"{line}; {fix}")


def check_identity(what: str, saved: Mapping[str, Any] | None, own: Identity) -> None:
    """Refuse weights that were trained on another base or through another template.

    Args:
        saved: what was saved beside the weights; None from a version that saved nothing. Its template is empty where
            another one is wanted.
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
    elif saved and (name := other_matrix(saved, own)):
        problems.append(
            f"{what}: was trained on another base model ({name} is not what it was); set backbone.path to the model "
            "that it was trained on"
        )
    if saved and saved["template"] and saved["template"] != own["template"]:
        problems.append(
            f"{what}: was trained through another chat template (fingerprint {saved['template']}, this one has "
            f"{own['template']}); use the tokenizer and backbone.template of the training"
        )
    raise_problems(problems)


def check_trained(what: str, weights: Mapping[str, Tensor]) -> None:
    """Refuse adapters that still are what they start as: all of their second factors zero.

    Args:
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
