"""Delivered model -> an ordinary transformers or peft folder, which plain transformers scores the same.

The command exports policies as well, see `policy_export.py`.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import huggingface_hub
import torch
from peft import AutoPeftModelForSequenceClassification
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from ser_lightning.data.encode import EncodedCandidates, encode_candidates
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.export.adapter import write_adapter
from ser_lightning.export.draft import check_is_new, drafted
from ser_lightning.export.model_card import model_card
from ser_lightning.export.reading_folder import CODE, is_plain, note_plain_or_own, own_model, save_tokenizer
from ser_lightning.export.self_test import TOLERANCE, SelfTest, compared
from ser_lightning.models.backbone import Backbone
from ser_lightning.models.fingerprint import template_fingerprint
from ser_lightning.models.loading import (
    copy_rounded_weights,
    keep_differentiable,
    quantization_config,
    read_config,
)
from ser_lightning.models.readings import Reading, noted_readings
from ser_lightning.models.reward_model import RewardModel, load_reward_model, merged_model
from ser_lightning.records import Turn
from ser_lightning.runs.files import delivered_round, how_delivered, labels_before, read_rounds
from ser_lightning.runs.reward_run import RewardRun, read_reward_run
from ser_lightning.training.scoring import evaluating

NUM_SELF_TEST_PAIRS = 32
Form = Literal["merged", "adapter"]
Dtype = Literal["float32", "bfloat16", "float16"]


def export(
    run: Path,
    to: Path,
    form: Form = "merged",
    dtype: Dtype | None = None,
    source: RewardRun | None = None,
    trust_remote_code: bool = False,
) -> SelfTest:
    """Write a reward model with its tokenizer, scale and card, as a folder that needs nothing of this package.

    The scale stands in `config.json`: `reward_zero`, `reward_temperature` (P(a wins) = sigmoid((r_a - r_b) /
    temperature)), `reward_template_hash`; of an adapter in `reward_scale.json`. Adapters are merged in 16 or 32 bits,
    never into 4 bits; where the body was trained on in 4 bits, into the values that these stand for, which the adapter
    was trained to correct.

    Args:
        run: run folder of a fit that has finished at least round 0.
        to: folder to write; must not exist. It appears when the self-test has passed.
        form: `merged` is a whole model; `adapter` is only what was trained (adapter and head), and names its base.
        dtype: number format of the body, None = as it was trained.
        source: another model of the run than the delivered one.
        trust_remote_code: run the Python files of the base model.

    Returns:
        The self-test of the folder.

    Raises:
        UserError: if there is nothing to export, `to` exists, or the exported model scores differently.
    """
    check_is_new(to)
    if source is not None:
        weights, own_labels = "a checkpoint", labels_before(run)
    else:
        source = read_reward_run(run, trust_remote_code)
        number = delivered_round(run)
        how = how_delivered(row.get("seed_oof_accuracy", math.nan) for row in read_rounds(run))
        weights, own_labels = f"round {number}, {how}", labels_before(run, number)
    raise_problems(_form_problems(source, form))
    trained, tokenizer = source.load()
    raise_problems(_encoder_problems(source, trained, form))
    number_format = dtype or source.backbone.dtype
    with drafted(to) as draft:
        result = write_tested(source, trained, tokenizer, draft, form, number_format)
        kept = f"{weights}; the body in {number_format}"
        scale = source.zero, source.temperature
        model_card(run, draft, form, kept, summary(result), scale, own_labels, trained.readings, _question(source))
    return result


def write_tested(
    source: RewardRun,
    trained: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    draft: Path,
    form: Form,
    number_format: Dtype,
) -> SelfTest:
    """Weights and tokenizer, and the rewards of the folder against those of the model before it was written."""
    expected = _trained_rewards(trained, tokenizer)
    if not math.isfinite(float(expected.abs().max())):
        raise UserError("export: the run gives rewards that are not finite; take a round that did not diverge")
    is_own = not (is_plain(trained.readings) if form == "merged" else _has_place_in_peft(source, trained.readings))
    if form == "merged":
        _write_merged(source, trained, tokenizer, draft, number_format)
    else:
        write_adapter(source, trained, tokenizer, draft, number_format, is_own)
    save_tokenizer(tokenizer, trained, _question(source), source.max_length, draft, is_own)
    is_exact = source.backbone.quantize == "none" and source.backbone.dtype == number_format == "float32"
    result = compared(expected, _strangers_rewards(draft, form, source.backbone, number_format), _pairs(), is_exact)
    raise_problems(filter(None, [result.problem("rewards")]))
    return result


def _has_place_in_peft(source: RewardRun, readings: Sequence[Reading]) -> bool:
    """Whether peft puts an adapter and this head on the base as on any classifier."""
    config = read_config(source.backbone)
    num_layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    base_is_plain = noted_readings(config) is None  # else it is an export whose head no classifier has
    return source.backbone.train == "lora" and is_plain(readings, num_layers) and base_is_plain


def _question(source: RewardRun) -> str:
    """What `judge` asks in this run."""
    return str((source.reading or {}).get("question", ""))


def summary(result: SelfTest) -> str:
    """The self-test of a reward model, for people."""
    kept = result.num_pairs - result.num_reordered
    why = f"tolerance {TOLERANCE:.0e}" if result.is_exact else "fewer bits than float32; least without --dtype"
    return (
        f"{result.num_pairs} made-up pairs, scored without ser-lightning: rewards differ from the model's own by "
        f"at most {result.largest:.1e} ({why}), where their standard deviation is {result.spread:.1e}; {kept} of "
        f"{result.num_pairs} pairs keep their order."
    )


def push(folder: Path, repository: str, is_private: bool = False) -> str:
    """Upload an export to the Hub; its address.

    Args:
        repository: owner/name; made if it is not there.
        is_private: whether to make a private one.

    Raises:
        UserError: if the Hub refuses; the folder stays.
    """
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(repository, private=is_private, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=repository, commit_message="Export of ser-lightning")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--push: {repository} was not written ({reason}); log in with `hf auth login` and upload {folder} with "
            f"`hf upload {repository} {folder}`"
        ) from error
    return str(address)


def _form_problems(source: RewardRun, form: Form) -> list[str]:
    if form == "merged":
        return []
    if source.backbone.train == "full":
        return ["--form: got adapter for a run with backbone.train full, which has trained all weights; use merged"]
    if source.backbone.gguf_file:
        return ["--form: got adapter for a GGUF base, which cannot be named as one; use merged"]
    return []


def _encoder_problems(source: RewardRun, trained: RewardModel, form: Form) -> list[str]:
    if form == "adapter" and source.backbone.train == "head" and not trained.is_decoder:
        return ["--form: got adapter for a frozen encoder, whose head has several layers; use merged"]
    return []


def _write_merged(
    source: RewardRun, trained: RewardModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: Dtype
) -> None:
    changes: dict[str, Any] = {"quantize": "none", "dtype": dtype}
    if any(getattr(source.backbone, name) != value for name, value in changes.items()):
        # Not `source.load`, which asks for the base that was trained on: rounded to other 16 bits it is another one.
        plain = load_reward_model(replace(source.backbone, **changes))
        source.put_into(plain, tokenizer)
        copy_rounded_weights(trained.body, plain.body)
        trained = plain
    model: Any = merged_model(trained)
    model.config.reward_zero, model.config.reward_temperature = source.zero, source.temperature
    model.config.reward_template_hash = template_fingerprint(tokenizer)
    note_plain_or_own(model, trained)
    model.save_pretrained(folder)


def _strangers_rewards(folder: Path, form: Form, backbone: Backbone, dtype: Dtype) -> Tensor:
    """Rewards computed as the model card shows it."""
    code = {"trust_remote_code": backbone.trust_remote_code}
    if (folder / CODE).is_file():
        own = own_model(folder, **code)
        keep_differentiable(own)  # the CPU kernel that this avoids takes wide layers only
        return _rewards(own, own)
    tokenizer = AutoTokenizer.from_pretrained(folder, **code)
    if form == "adapter":
        bits = {} if backbone.quantize == "none" else {"quantization_config": quantization_config()}
        arguments = {"num_labels": 1, "dtype": dtype, **bits, **code}
        model = AutoPeftModelForSequenceClassification.from_pretrained(folder, **arguments)
        model.config.pad_token_id = tokenizer.pad_token_id
        keep_differentiable(model)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder, **code)
    settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "padding": True, "padding_side": "right"}

    def score(conversations: list[list[Turn]]) -> Tensor:
        inputs = tokenizer.apply_chat_template(conversations, **settings)
        return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0]

    return _rewards(model, score)


def _trained_rewards(trained: RewardModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    def score(conversations: list[list[Turn]]) -> Tensor:
        prompts, responses = (
            [turns[:-1] for turns in conversations],
            [[turns[-1]["content"]] for turns in conversations],
        )
        found = cast(list[EncodedCandidates], encode_candidates(tokenizer, prompts, responses, sys.maxsize))
        rows, starts = [one.rows[0] for one in found], [one.start for one in found]
        return trained(trained.layout.lay_out(rows, range(len(rows)), int(tokenizer.pad_token_id), starts))

    return _rewards(trained, score)


def _conversations() -> list[list[Turn]]:
    """Both conversations of the self-test's pairs, of different lengths: responses a first."""
    longer = [f"It is {'very ' * (i % 16)}{2 * i}." for i in range(NUM_SELF_TEST_PAIRS)]
    shorter = [f"{2 * i + i % 3}, I think." for i in range(NUM_SELF_TEST_PAIRS)]
    questions = [f"Question number {i}: what is {i} and {i}?" for i in range(NUM_SELF_TEST_PAIRS)]
    turns = zip(questions * 2, longer + shorter, strict=True)
    return [[Turn(role="user", content=q), Turn(role="assistant", content=a)] for q, a in turns]


def _pairs() -> tuple[Tensor, Tensor]:
    """Where `_conversations` has the responses a and b of its pairs."""
    first = torch.arange(NUM_SELF_TEST_PAIRS)
    return first, first + NUM_SELF_TEST_PAIRS


def _rewards(model: nn.Module, score: Callable[[list[list[Turn]]], Tensor]) -> Tensor:
    """(64,) rewards of the self-test's conversations, eight at a time."""
    conversations = _conversations()
    with evaluating(model):
        parts = [score(conversations[i : i + 8]).float() for i in range(0, len(conversations), 8)]
    return torch.cat(parts)
