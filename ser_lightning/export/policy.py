"""Trained policy -> an ordinary `AutoModelForCausalLM` folder, with the same logits in plain transformers."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from ser_lightning.data.encode import encode_conversations, encode_prompts
from ser_lightning.data.templates import fix_date
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.export.draft import check_is_new, drafted
from ser_lightning.export.model_card import model_card
from ser_lightning.export.self_test import SelfTest, compared
from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.models.fingerprint import check_identity, identity_of
from ser_lightning.models.loading import copy_rounded_weights, forget_gguf
from ser_lightning.models.policy import load_policy
from ser_lightning.models.probe import errors, start_findings
from ser_lightning.models.tokens import closing_token, question
from ser_lightning.rl.rollout import stop_ids
from ser_lightning.runs.config import read_config
from ser_lightning.runs.policy_run import read_policy_backbone, resolve_start
from ser_lightning.training.scoring import evaluating

_SELF_TEST = [("Is tea a fruit?", "No, it is made of leaves."), ("How are you?", "Well.")]


def export_policy(run: Path, to: Path, trust_remote_code: bool = False) -> float:
    """Write the policy of a run of sft.yaml or ppo.yaml as a transformers folder with its tokenizer and template.

    Args:
        to: folder to write; must not exist. It appears when the self-test has passed.
        trust_remote_code: run the Python files of the base model; the run's own config cannot ask for that.

    Returns:
        The largest difference between a logit of the trained model and of the exported one, read back from disk.

    Raises:
        UserError: if there is nothing to export, `to` exists, or the exported model computes something else.
    """
    check_is_new(to)
    start = resolve_start(replace(read_policy_backbone(run), path=str(run), trust_remote_code=trust_remote_code))
    tokenizer = load_tokenizer(start.backbone)
    raise_problems(errors(start_findings(start.backbone, tokenizer, "policy")))
    trained = load_policy(start.backbone, start=start.weights)
    check_identity("run", start.identity, identity_of(trained.lm, tokenizer))
    expected = _self_test_logits(trained.lm, tokenizer)
    # Adapters go into the weights at their own precision, never into 4 bits, but into what the 4 bits stand for.
    policy = load_policy(replace(start.backbone, quantize="none"), start=start.weights)
    copy_rounded_weights(trained.body, policy.body)
    lm, prefix = policy.lm, str(policy.lm.base_model_prefix)
    if isinstance(policy.body, PeftModel):
        setattr(lm, prefix, policy.body.merge_and_unload())
    with drafted(to) as draft:
        forget_gguf(lm)
        sampling = read_config(run)["model"]["init_args"].get("sampling") or {}
        _set_ends(lm, tokenizer, sampling.get("stop") or [])
        lm.save_pretrained(draft)
        fix_date(tokenizer)
        tokenizer.save_pretrained(draft)
        largest = _self_test(draft, tokenizer, expected, start.backbone).largest
        checked = f"Logits at the end of conversations differ from the trained model's by at most {largest:.1e}."
        weights = f"the last step, the body in {start.backbone.dtype}"
        model_card(run, draft, "policy", weights, checked, base=start.backbone.path)
    return largest


def _set_ends(lm: nn.Module, tokenizer: PreTrainedTokenizerBase, stop: list[str]) -> None:
    """Let `generate` stop where sampling did in training, and not at the EOS of the base alone."""
    settings = lm.generation_config
    settings.eos_token_id = stop_ids(settings.eos_token_id, tokenizer, stop)
    settings.pad_token_id = tokenizer.pad_token_id
    try:
        settings.validate(strict=True)
    except ValueError:  # a base may name a temperature without it, which transformers loads but does not save
        settings.do_sample = True


def _self_test(folder: Path, tokenizer: PreTrainedTokenizerBase, expected: Tensor, backbone: Backbone) -> SelfTest:
    """The worse of two conversations, and a response that ends where the model says that it does."""
    lm = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=backbone.trust_remote_code)
    found = _self_test_logits(lm, tokenizer)
    is_exact = backbone.quantize == "none" and backbone.dtype == "float32"
    places = torch.arange(expected.shape[1] - 1)
    tests = [compared(*rows, (places, places + 1), is_exact) for rows in zip(expected, found, strict=True)]
    raise_problems(dict.fromkeys(problem for test in tests if (problem := test.problem("logits"))))
    _check_that_it_ends(lm, tokenizer)
    return max(tests, key=lambda test: test.largest)


class _EndAt(LogitsProcessor):
    """Makes one token certain once a text has so many tokens, and impossible before."""

    def __init__(self, length: int, token: int) -> None:
        self.length, self.token = length, token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(R, V) scores with that token first or last."""
        scores = scores.clone()
        scores[:, self.token] = torch.inf if input_ids.shape[1] >= self.length else -torch.inf
        return scores


def _check_that_it_ends(lm: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let plain transformers generate, with the folder's own settings: a response ends with its closing token."""
    end = closing_token(tokenizer)
    token = tokenizer.eos_token_id if end is None else end
    if token is None:
        return
    [prompt] = encode_prompts(tokenizer, [question()], sys.maxsize)
    ids, length = torch.tensor([prompt]), len(prompt) + 2
    with evaluating(lm):
        made = lm.generate(  # the settings of sampling that other commands read are left out: they may need a GPU
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            max_new_tokens=6,
            logits_processor=LogitsProcessorList([_EndAt(length, token)]),
        )
    if made.shape[1] > length + 1 or (made.shape[1] == length + 1 and int(made[0, -1]) != token):
        raise UserError(
            f"export: responses of the folder go on after {tokenizer.convert_ids_to_tokens(token)!r}, with which they "
            "should end; look at eos_token_id in the generation_config.json of the base"
        )


def _self_test_logits(lm: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(2, V) logits at the end of fixed conversations."""
    conversations = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in _SELF_TEST]
    rows = encode_conversations(tokenizer, conversations)  # type: ignore[arg-type]
    with evaluating(lm):
        return torch.stack([lm(input_ids=torch.tensor([row])).logits[0, -1].float() for row in rows])
