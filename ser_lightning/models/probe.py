"""What a tokenizer, its chat template and a model's positions do that would go wrong later, found before anything runs.

Every command that loads a model asks here: `fit`, `plan` and their like through `start_findings`, the others where they
load. A finding is fine, a note, or an error that stops the command.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from ser_lightning.data.encode import encode_conversations
from ser_lightning.data.templates import TemplateRefused, render_conversations
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.models.backbone import Backbone, not_found
from ser_lightning.models.loading import read_config, vocabulary_problem
from ser_lightning.models.tokens import closing_token, conversation_ids, question
from ser_lightning.records import Turn

_ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention, Conv1D)
"""What peft can put a low-rank adapter on."""
Use = Literal["reward", "sft", "policy"]
"""What the model is for; `policy` samples, and `sft` trains on whole conversations as well."""
LARGE, HIGH_RATE = 50_000_000, 1e-4
"""A model of so many weights is taken to be pretrained on text at large, and to forget it above this learning rate."""


@dataclass(frozen=True)
class Finding:
    """What one check says.

    Attributes:
        check: what was looked at, in a word or two.
        says: whether that is fine.
        text: one line; of an error "what: got; fix".
    """

    check: str
    says: Literal["ok", "note", "error"]
    text: str


def errors(findings: Iterable[Finding]) -> list[str]:
    """The lines of those that stop a command."""
    return [finding.text for finding in findings if finding.says == "error"]


def start_findings(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    use: Use,
    max_length: int | None = None,
    num_question: int = 0,
    is_question_optional: bool = False,
    learning_rate: float | None = None,
) -> list[Finding]:
    """All that can be known of a model without its weights.

    Args:
        tokenizer: as `load_tokenizer` gives it.
        use: what the model is for.
        max_length: `data.max_length`, None where conversations are not that long for this model.
        num_question: tokens of a question that is put after each conversation.
        is_question_optional: whether none is put where the model has no positions for it.
        learning_rate: the peak of its schedule, None where nothing is trained.

    Raises:
        UserError: there is no config, or the template refuses a question and its answer.
    """
    raise_problems(backbone.problems())
    try:
        config = read_config(backbone)
        body = bare_body(config, backbone.trust_remote_code)
    except UserError:
        raise
    except Exception as error:  # a config can hold anything, such as no heads, on which transformers trips
        raise UserError(not_found("model", backbone.resolved_path(), error)) from error
    findings = [*template_findings(tokenizer, use), vocabulary_finding(body, tokenizer)]
    if max_length is not None:
        positions = num_positions(config, body)
        found = length_finding(max_length, positions, num_question)
        if found.says == "error" and is_question_optional:
            found = length_finding(max_length, positions)
        findings.append(found)
    if backbone.train == "lora":
        findings.append(target_finding(body, backbone.lora.target_modules))
    if backbone.train == "full" and learning_rate is not None:
        findings.append(rate_finding(body, learning_rate, use))
    return findings


def template_findings(tokenizer: PreTrainedTokenizerBase, use: Use) -> Iterator[Finding]:
    """Pad, end of turn, BOS, generation prompt and empty turns.

    Raises:
        UserError: the template refuses a question and its answer.
    """
    ids = conversation_ids(tokenizer)
    yield _pad_finding(tokenizer, ids[-1], use)
    yield _closing_finding(tokenizer, use)
    bos = tokenizer.bos_token_id
    is_once = bos is not None and bos != tokenizer.eos_token_id and ids.count(bos) == 1
    yield Finding("BOS", "ok", f"{tokenizer.bos_token!r} once" if is_once else "the template puts none")
    if use != "reward":
        yield _prompt_finding(tokenizer, use)
    yield _empty_finding(tokenizer)


def _pad_finding(tokenizer: PreTrainedTokenizerBase, last: int, use: Use) -> Finding:
    """Plain transformers reads a reward before the first trailing pad, whatever the attention mask says."""
    pad = tokenizer.pad_token
    if tokenizer.pad_token_id == last and use == "reward":
        return Finding(
            "pad",
            "error",
            f"backbone.path: got {pad!r} as the pad token and as the end of every conversation, so that plain "
            "transformers would read rewards a token too early; give the tokenizer a pad token of its own, or set "
            "backbone.template to paper",
        )
    same = tokenizer.pad_token_id == tokenizer.eos_token_id
    return Finding("pad", "ok", f"{pad!r} is EOS as well, but ends no conversation" if same else f"{pad!r}, not EOS")


def _closing_finding(tokenizer: PreTrainedTokenizerBase, use: Use) -> Finding:
    token, eos = closing_token(tokenizer), tokenizer.eos_token
    if token is None:
        text = "the template ends a turn with no token of its own"
        if use == "reward":
            return Finding("end of turn", "ok", f"{text}: rewards are read at the last token of a response")
        return Finding(
            "end of turn",
            "note",
            f"{text}, so that a policy never learns to end; use a template that ends with {eos!r}",
        )
    name = tokenizer.convert_ids_to_tokens(token)
    also = "" if token == tokenizer.eos_token_id else f", which is not EOS ({eos!r}): responses end at either"
    return Finding("end of turn", "ok", f"{name!r}{also}")


def _prompt_finding(tokenizer: PreTrainedTokenizerBase, use: Use) -> Finding:
    """Sampling begins where the generation prompt ends; what a trained turn does not begin with was never trained."""
    [start] = render_conversations(tokenizer, [question()], add_generation_prompt=True)
    [whole] = render_conversations(tokenizer, [[*question(), _answer("So.")]])
    if not whole.startswith(start):
        shared = next((i for i, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b), len(whole))
        text = (
            f"backbone.template: got a generation prompt that ends in {start[shared:][:40]!r}, with which no turn of a "
            "conversation begins, so that SFT would train another place than sampling begins at; use a template "
            "without it (a copy in a file)"
        )
        return Finding("generation prompt", "error" if use == "sft" else "note", text)
    [ids] = encode_conversations(tokenizer, [question()], add_generation_prompt=True)
    if conversation_ids(tokenizer)[: len(ids)] != ids:
        text = "its last tokens join the first of a response to other tokens; let it end without white space"
        return Finding("generation prompt", "note", f"backbone.template: {text}")
    return Finding("generation prompt", "ok", "every turn begins with it")


def _empty_finding(tokenizer: PreTrainedTokenizerBase) -> Finding:
    """Cut prompts and untrained policies make empty turns."""
    refused = [
        what
        for what, turns in (
            ("an empty prompt", [Turn(role="user", content=""), _answer("So.")]),
            ("an empty response", [*question(), _answer("")]),
        )
        if is_refused(tokenizer, turns)
    ]
    text = f"the template refuses {' and '.join(refused)}" if refused else "the template takes them"
    return Finding("empty turns", "ok", text)


def is_refused(tokenizer: PreTrainedTokenizerBase, turns: list[Turn]) -> bool:
    """Whether the template refuses a conversation."""
    try:
        render_conversations(tokenizer, [turns])
    except TemplateRefused:
        return True
    return False


def empty_response_problem(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """One line where a template refuses what a policy may answer at any time: nothing."""
    if not is_refused(tokenizer, [*question(), _answer("")]):
        return None
    return (
        "its chat template refuses an empty response, which a policy may give at any step; change the template of the "
        "reward model"
    )


def _answer(text: str) -> Turn:
    return Turn(role="assistant", content=text)


# Vocabulary


def vocabulary_finding(body: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Finding:
    """Whether there is an embedding for every token."""
    if problem := vocabulary_problem(body, tokenizer):
        return Finding("vocabulary", "error", problem)
    rows = body.get_input_embeddings().num_embeddings  # type: ignore[operator]
    return Finding("vocabulary", "ok", f"{len(tokenizer):,} tokens for {rows:,} embeddings")


def rate_finding(body: nn.Module, learning_rate: float, use: Use) -> Finding:
    """Whether all weights of a large model are to change at a rate that is meant for adapters or a small one."""
    count = sum(weight.numel() for weight in body.parameters())
    if count < LARGE or learning_rate <= HIGH_RATE:
        return Finding("learning rate", "ok", f"{learning_rate:g} for {count:,} weights")
    overlay = "models/pretrained.yaml" if use == "reward" else "policies/qwen2.5-0.5b.yaml"
    return Finding(
        "learning rate",
        "note",
        f"model.optimizer.lr: got {learning_rate:g} to train a model of {count:,} weights in full, which forgets at "
        f"that rate what it knew; put --config {overlay} before your own flags for adapters, or set it to 1e-5",
    )


# Positions


def bare_body(config: PretrainedConfig, trust_remote_code: bool = False) -> nn.Module:
    """The body of a model on the meta device, with shapes and names but without values."""
    with torch.device("meta"):
        return AutoModel.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)


def num_positions(config: PretrainedConfig, body: nn.Module | None = None) -> int | None:
    """Most tokens that a model can read, None for any number.

    A table of positions ends in an error after its last row, and rotary embeddings give nonsense in silence. Models
    of RoBERTa's kind leave the first rows of their table to the pad.

    Args:
        body: the model's, or one like it on the meta device; None has it made.
    """
    text: Any = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if limit is None:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    if rope:
        kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
        scaled = [
            part["factor"] * (part.get("original_max_position_embeddings") or limit)
            for part in kinds
            if part.get("factor")
        ]
        return int(max([limit, *scaled]))
    tables = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in (bare_body(config) if body is None else body).named_modules()
        if isinstance(module, nn.Embedding) and re.search(r"position|wpe", name.rsplit(".", 1)[-1])
    ]
    if not tables and getattr(text, "relative_attention", False):
        return None
    return int(min([limit, *tables]))


def length_finding(
    max_length: int, positions: int | None, num_question: int = 0, setting: str = "data.max_length"
) -> Finding:
    """Whether a model has a position for every token of the longest conversation and the question after it."""
    length = max_length + num_question
    if num_question:
        setting = f"{setting}, with {num_question} tokens of model.question"
    if positions is not None and length > positions:
        return Finding(
            "length", "error", f"{setting}: got {length} for a model of {positions} positions; use at most that"
        )
    return Finding("length", "ok", f"{setting} {length} of {positions or 'any number of'} positions")


# Adapters


def target_finding(body: nn.Module, targets: str | Sequence[str]) -> Finding:
    """Whether a model has the layers that are to get an adapter: peft passes over those that it lacks.

    Args:
        body: the body, without adapters.
        targets: `all-linear`, a regular expression for whole names, or the last parts of names.
    """
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return Finding("adapters", "ok", "on every linear layer")
    layers = [name for name, module in body.named_modules() if isinstance(module, _ADAPTABLE)]
    if isinstance(targets, str):
        missing = [] if any(re.fullmatch(targets, name) for name in layers) else [targets]
    else:
        missing = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in layers)]
    if not missing:
        return Finding("adapters", "ok", f"on {targets if isinstance(targets, str) else ', '.join(targets)}")
    known = sorted({name.rsplit(".", 1)[-1] for name in layers})
    fix = f"use the list [{targets}]" if targets in known else "use some of them, or all-linear"
    return Finding(
        "adapters",
        "error",
        f"backbone.lora.target_modules: got {', '.join(missing)}, which no layer that can have an adapter is "
        f"called; there are {', '.join(known)}; {fix}",
    )
