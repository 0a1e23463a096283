"""A language model's own answer to the question of `judge`, as a reward model that no label has trained.

The reward of a response is the log-odds of Yes against No, a linear head (`training/own_answer.py`): so the folder is a
plain classifier.
"""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedTokenizerBase

from ser_lightning.errors import UserError, raise_problems
from ser_lightning.export.draft import check_is_new, drafted
from ser_lightning.export.model_card import answer_text
from ser_lightning.export.reward import Dtype, summary, write_tested
from ser_lightning.export.self_test import SelfTest
from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.models.probe import errors, num_positions, start_findings
from ser_lightning.models.readings import QUESTION, Reading
from ser_lightning.models.reward_model import RewardModel, load_reward_model
from ser_lightning.models.trainable import trainable_state
from ser_lightning.runs.reward_run import RewardRun
from ser_lightning.training.own_answer import answer_direction


def export_answer(
    model: str,
    to: Path,
    dtype: Dtype = "float32",
    question: str = QUESTION,
    trust_remote_code: bool = False,
) -> SelfTest:
    """Write what a language model answers as a folder that every command takes where it takes an export.

    The folder's temperature is 1: the reward is in logits of the model, and not calibrated.

    Args:
        model: folder or Hub name of a language model with a chat template.
        to: folder to write; must not exist. It appears when the self-test has passed.
        dtype: number format of the body.
        question: to be answered by Yes or No.
        trust_remote_code: run the Python files of the model.

    Returns:
        The self-test of the folder.

    Raises:
        UserError: if `to` exists, or the model cannot answer: an encoder, a template that refuses the question.
    """
    check_is_new(to)
    backbone = Backbone(
        model, train="head", dtype="bfloat16" if dtype == "bfloat16" else "float32", trust_remote_code=trust_remote_code
    )
    tokenizer = load_tokenizer(backbone)
    raise_problems(errors(start_findings(backbone, tokenizer, "reward")))
    reward_model = answering_model(backbone, tokenizer, question)
    positions = num_positions(reward_model.model.config, reward_model.body) or tokenizer.model_max_length
    max_length = min(positions, tokenizer.model_max_length) - len(reward_model.layout.question)
    reading = {"readings": [str(one) for one in reward_model.readings], "question": question}
    weights = trainable_state(reward_model)
    source = RewardRun(backbone, max_length, weights, zero=0.0, temperature=1.0, reading=reading)
    with drafted(to) as draft:
        result = write_tested(source, reward_model, tokenizer, draft, "merged", dtype)
        card_data = ModelCardData(library_name="transformers", pipeline_tag="text-classification")
        text = answer_text(model, question, max_length, summary(result))
        ModelCard(f"---\n{card_data.to_yaml()}\n---\n{text}\n").save(draft / "README.md")
    return result


def answering_model(backbone: Backbone, tokenizer: PreTrainedTokenizerBase, question: str = QUESTION) -> RewardModel:
    """The reward model whose head is the answer.

    Args:
        backbone: of a decoder.
        tokenizer: of the same model.
        question: to be answered by Yes or No.
    """
    reward_model = load_reward_model(backbone)
    if not reward_model.is_decoder:
        raise UserError(f"--answer: got {backbone.path}, an encoder, which cannot be asked; give a language model")
    head = answer_direction(backbone, tokenizer)
    reward_model.read_as(tokenizer, [str(Reading("judge", reward_model.num_layers))], question)
    model: Any = reward_model.model
    with torch.no_grad():
        model.score.weight.copy_(head[None])
    return reward_model.eval()
