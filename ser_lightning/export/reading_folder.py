"""Exports whose head reads elsewhere than at the last token: by their chat template, or by a file of their own."""

import json
import runpy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from ser_lightning.data.templates import fix_date
from ser_lightning.export import standalone
from ser_lightning.models.loading import quiet_load_report
from ser_lightning.models.readings import Reading, TurnTokens, forget_readings, reading_entries
from ser_lightning.models.reward_model import RewardModel

CODE = "reward_model.py"
"""The file that scores what plain transformers cannot."""
_ASK = """\
{{% if messages and messages[-1]['role'] == 'assistant' %}}\
{{% set messages = messages + [{{'role': 'user', 'content': {question}}}] %}}{{% set add_generation_prompt = true %}}\
{{% endif %}}
"""


def is_plain(readings: Sequence[Reading], num_layers: int | None = None) -> bool:
    """Whether `AutoModelForSequenceClassification` gives the rewards: one state, at the last token of what it is given.

    Args:
        readings: K of them; none of an encoder.
        num_layers: of a base that stays whole, as that of an adapter; None = it ends at the highest reading.
    """
    is_last = all(reading.layer == num_layers for reading in readings) or num_layers is None
    return is_last and len(readings) <= 1 and all(reading.kind in ("last", "judge") for reading in readings)


def note_plain_or_own(model: Any, reward_model: RewardModel) -> None:
    """Prepare a merged model to be saved so that what is no plain classifier is not taken for one.

    Args:
        model: the merged transformers model; changed in place.
        reward_model: whose readings it has.
    """
    if is_plain(reward_model.readings):
        forget_readings(model.config)
        return
    layout = reward_model.layout
    for name, value in reading_entries(reward_model.readings, TurnTokens(layout.header, layout.question)).items():
        setattr(model.config, name, value)
    if len(reward_model.readings) == 1:
        # A head of the usual shape would load as a plain classifier without a word, and give other rewards.
        model.score.weight = nn.Parameter(model.score.weight.detach().flatten(), requires_grad=False)


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    reward_model: RewardModel,
    question: str,
    max_length: int,
    folder: Path,
    is_own: bool,
) -> None:
    """Save the tokenizer; where a plain folder reads `judge`, its chat template asks the question.

    Args:
        reward_model: whose readings the folder has.
        max_length: most tokens in a conversation, without the question.
        is_own: the folder is no plain classifier, and gets a file that scores.
    """
    asks = not is_own and any(reading.kind == "judge" for reading in reward_model.readings)
    tokenizer.model_max_length = max_length
    fix_date(tokenizer)
    if asks:
        tokenizer.chat_template = asking_template(tokenizer.get_chat_template(), question)
        tokenizer.model_max_length += len(reward_model.layout.question)
    if is_own:
        shutil.copyfile(str(standalone.__file__), folder / CODE)
    tokenizer.save_pretrained(folder)


def asking_template(template: str, question: str) -> str:
    """A chat template that puts a question, and the beginning of its answer, after a conversation with a response.

    Args:
        template: the original; prompts, which end with another turn, are written as it writes them.
        question: what is asked.
    """
    # Jinja reads escapes as Python does, but no surrogate pairs. After a tag transformers leaves out one line break.
    return _ASK.format(question=json.dumps(question, ensure_ascii=False)) + template


def own_model(folder: Path, **arguments: Any) -> nn.Module:
    """What the file of a folder loads: from conversations to rewards."""
    load = runpy.run_path(str(folder / CODE))["load"]  # an import would leave its bytecode in the folder
    with quiet_load_report():
        model: nn.Module = load(folder, **arguments)
    return model
