"""Trained policy -> an ordinary `AutoModelForCausalLM` folder, with the same logits in plain transformers."""

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ser_lightning.data.encode import encode_conversations
from ser_lightning.errors import UserError
from ser_lightning.export.model_card import model_card
from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.models.loading import copy_rounded_weights, forget_gguf
from ser_lightning.models.policy import load_policy
from ser_lightning.runs.policy_run import read_policy_backbone, resolve_start
from ser_lightning.training.scoring import evaluating

SELF_TEST_TOLERANCE = 1e-3
"""Largest difference of a logit between the trained and the exported float32 model."""
_SELF_TEST = [("Is tea a fruit?", "No, it is made of leaves."), ("How are you?", "Well.")]


def export_policy(run: Path, to: Path, trust_remote_code: bool = False) -> float:
    """Write the policy of a run of sft.yaml or ppo.yaml as a transformers folder with its tokenizer and template.

    Args:
        run: run folder of a fit.
        to: folder to write; must not exist. It appears when the self-test has passed.
        trust_remote_code: run the Python files of the base model; the run's own config cannot ask for that.

    Returns:
        The largest difference between a logit of the trained model and of the exported one, read back from disk.

    Raises:
        UserError: if there is nothing to export, `to` exists, or the exported model computes something else.
    """
    if to.exists():
        raise UserError(f"--to: {to} exists already; name another folder or remove it")
    start = resolve_start(replace(read_policy_backbone(run), path=str(run), trust_remote_code=trust_remote_code))
    tokenizer = load_tokenizer(start.backbone)
    trained = load_policy(start.backbone, start=start.weights)
    expected = _self_test_logits(trained.lm, tokenizer)
    # Adapters go into the weights at their own precision, never into 4 bits, but into what the 4 bits stand for.
    policy = load_policy(replace(start.backbone, quantize="none"), start=start.weights)
    copy_rounded_weights(trained.body, policy.body)
    lm, prefix = policy.lm, str(policy.lm.base_model_prefix)
    if isinstance(policy.body, PeftModel):
        setattr(lm, prefix, policy.body.merge_and_unload())
    draft = to.with_name(f".{to.name}.{os.getpid()}.draft")
    try:
        forget_gguf(lm)
        lm.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        largest = _self_test(draft, tokenizer, expected, start.backbone)
        checked = f"Logits at the end of conversations differ from the trained model's by at most {largest:.1e}."
        model_card(run, draft, "policy", f"the last step, the body in {start.backbone.dtype}", checked)
        os.rename(draft, to)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return largest


def _self_test(folder: Path, tokenizer: PreTrainedTokenizerBase, expected: Tensor, backbone: Backbone) -> float:
    found = _self_test_logits(
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=backbone.trust_remote_code), tokenizer
    )
    largest = float((found - expected).abs().max())
    if not math.isfinite(largest):
        raise UserError("export: the logits are not finite, so the weights are not; take a run that did not diverge")
    is_exact = backbone.quantize == "none" and backbone.dtype == "float32"
    if is_exact and largest > SELF_TEST_TOLERANCE:
        raise UserError(f"export: logits of the folder differ by {largest:.2e} from the trained model's")
    return largest


def _self_test_logits(lm: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(2, V) logits at the end of fixed conversations."""
    conversations = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in _SELF_TEST]
    rows = encode_conversations(tokenizer, conversations)  # type: ignore[arg-type]
    with evaluating(lm):
        return torch.stack([lm(input_ids=torch.tensor([row])).logits[0, -1].float() for row in rows])
