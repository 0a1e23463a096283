"""What a config names as a reward: run folders, transformers folders, functions by their dotted path."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from ser_lightning.errors import UserError, describe, raise_problems
from ser_lightning.models.adapter_folder import ADAPTER, is_adapter_folder, load_adapter_folder
from ser_lightning.models.backbone import load_tokenizer, not_found
from ser_lightning.models.loading import check_layers, is_meta, meta_arguments, quiet_load_report, vocabulary_problem
from ser_lightning.models.masks import choose_layout
from ser_lightning.models.probe import empty_response_problem, num_positions
from ser_lightning.models.readings import noted_readings
from ser_lightning.models.reward_model import read_folder
from ser_lightning.models.tokens import check_is_whole
from ser_lightning.rl.reward_functions import FunctionReward, ModelReward, RewardFunction, RewardSum, named
from ser_lightning.runs.files import ROUNDS, is_run
from ser_lightning.runs.reward_run import RewardRun, read_reward_run
from ser_lightning.runs.weights import check_weights, scale_problem

_SOURCES = (
    "give the run folder of a fit, a transformers folder with a classifier of one label, or the dotted path of a "
    "function (prompts, responses) -> scores, such as my_module.my_function"
)

Build = Callable[[RewardRun], nn.Module | None]
"""From a run to a reward model; None to have it loaded by itself."""


def load_rewards(
    sources: str | dict[str, float],
    device: torch.device | str = "cpu",
    allow_uncalibrated: bool = False,
    build: Build | None = None,
) -> RewardSum:
    """The reward functions of a config.

    Args:
        sources: one source as `load_reward` takes it, or several with their weights.
        allow_uncalibrated: take reward models whose scale was never fitted.

    Raises:
        UserError: all that is wrong with any source.
    """
    weights = {sources: 1.0} if isinstance(sources, str) else sources
    problems = [
        f"reward {source}: got the weight {weight}; use a number that is not 0"
        for source, weight in weights.items()
        if not math.isfinite(weight) or weight == 0
    ]
    if not weights:
        problems.append(f"reward: got no source; {_SOURCES}")
    functions: dict[str, RewardFunction] = {}
    for source in weights:
        try:
            functions[source] = load_reward(source, device, allow_uncalibrated, build)
        except UserError as error:
            problems.extend(error.problems)
            continue
        judge = functions[source]
        if isinstance(judge, ModelReward) and (problem := empty_response_problem(judge.tokenizer)):
            problems.append(f"reward {source}: {problem}")
    raise_problems(problems)
    return RewardSum(functions, weights)


def load_reward(
    source: str,
    device: torch.device | str = "cpu",
    allow_uncalibrated: bool = False,
    build: Build | None = None,
    trust_remote_code: bool = False,
) -> RewardFunction:
    """The reward function behind a name.

    Args:
        source: run folder of a reward-model fit, transformers folder of a classifier with one label (such as an
            export), or the dotted path of a function `(prompts, responses) -> scores`.
        device: where a model goes; on `meta` the weights of pretrained models and of folders are not read.
        allow_uncalibrated: take a reward model whose scale was never fitted.
        build: makes the reward model of a run where it can, such as one on a base that is loaded already, else None.

    Raises:
        UserError: if the source is none of these, or a reward model without calibration.
    """
    folder = Path(source).expanduser()
    with named(source):
        if is_run(folder) and (folder / ROUNDS).is_file():
            found = _reward_of_run(source, folder, device, build, trust_remote_code)
        elif (folder / "config.json").is_file() or is_adapter_folder(folder):
            found = _reward_of_folder(source, folder, device, allow_uncalibrated, trust_remote_code)
        elif folder.is_dir():
            raise UserError(
                f"got a folder without config.yaml and rounds.csv, and without config.json or {ADAPTER}; {_SOURCES}"
            )
        else:
            return FunctionReward(_import_function(source), source)
        if (found.zero, found.temperature) == (0.0, 1.0) and not allow_uncalibrated:
            raise UserError(
                "got the zero 0 and the temperature 1 of a fit without folds, which say nothing of its scale; "
                "fit it with folds 2 or more, or set allow_uncalibrated"
            )
    return found


def _reward_of_run(
    source: str, run: Path, device: torch.device | str, build: Build | None, trust_remote_code: bool
) -> ModelReward:
    delivered = read_reward_run(run, trust_remote_code)
    reward_model = build(delivered) if build else None
    if reward_model is None:
        reward_model, tokenizer = delivered.load(device)
        reward_model.requires_grad_(False).to(device)  # not what `build` made: its parameters may be the policy's
    else:
        tokenizer = load_tokenizer(delivered.backbone)
    return ModelReward(reward_model, tokenizer, delivered.max_length, delivered.zero, delivered.temperature, source)


def _reward_of_folder(
    source: str, folder: Path, device: torch.device | str, takes_any_scale: bool, trust_remote_code: bool
) -> ModelReward:
    code = {"trust_remote_code": trust_remote_code}  # None, the default, would ask at the terminal
    missing: list[str] = []
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **code)
        check_is_whole(tokenizer)
        if is_adapter_folder(folder):
            model = load_adapter_folder(folder, trust_remote_code, device)
            raise_problems(_config_problems(model.config, takes_any_scale))
        else:
            config = AutoConfig.from_pretrained(folder, **code)
            raise_problems(_config_problems(config, takes_any_scale))
            check_layers(folder, config)
            model, missing = _load_classifier(folder, config, code, device)
        if problem := vocabulary_problem(model, tokenizer):
            raise UserError(problem)
        max_length = int(min(tokenizer.model_max_length, num_positions(model.config, model) or math.inf))
        reward_model = read_folder(model, folder, choose_layout("auto", model, device, source))
        if not is_meta(device):
            check_weights(folder, dict(model.named_parameters()), "model")
    except UserError:
        raise
    except Exception as error:  # what a config of other types and sizes leads to
        if "trust_remote_code" in str(error):
            raise UserError(not_found("model", source, error)) from error
        raise UserError(f"got no classifier from the folder ({describe(error)}); {_SOURCES}") from error
    if missing:
        raise UserError(f"got no weights for {', '.join(missing[:2])}; give a reward model that was trained")
    if not isinstance(tokenizer.chat_template, (str, dict)) or not tokenizer.chat_template:
        raise UserError("got a tokenizer without a chat template; save the one that the model was trained with")
    config, unread = model.config, model.config.get_text_config().pad_token_id
    reward_model.requires_grad_(False).to(device)
    reward = ModelReward(reward_model, tokenizer, max_length, *_scale(config), source)
    is_read_plainly = reward_model.is_decoder and noted_readings(config) is None
    reward.unread_token = unread if is_read_plainly else None
    return reward


def _load_classifier(
    folder: Path, config: PretrainedConfig, code: dict[str, bool], device: torch.device | str
) -> tuple[PreTrainedModel, list[str]]:
    """What plain transformers loads of a folder, and the weights that it lacks."""
    # A head of several readings has another size; `read_folder` brings it.
    has_readings = noted_readings(config) is not None
    with quiet_load_report() if has_readings else nullcontext():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=has_readings, **code, **meta_arguments(device)
        )
    mismatched = {key for key, *_ in report["mismatched_keys"]} - {"score.weight"}
    return model, sorted({*report["missing_keys"], *mismatched})


def _scale(config: PretrainedConfig) -> tuple[Any, Any]:
    """Zero and temperature."""
    return getattr(config, "reward_zero", 0.0), getattr(config, "reward_temperature", 1.0)


def _config_problems(config: PretrainedConfig, takes_any_scale: bool) -> Iterator[str]:
    if config.num_labels != 1:
        yield f"got a model of {config.num_labels} labels; need a classifier of one label, the reward"
    elif problem := scale_problem(*_scale(config)):
        yield f"got a config.json that is damaged: {problem}"
    elif not takes_any_scale and not hasattr(config, "reward_temperature"):
        yield (
            "got a config.json without reward_temperature, so its scale is unknown; add reward_temperature and "
            "reward_zero, or set allow_uncalibrated"
        )


def _import_function(source: str) -> Callable[..., Any]:
    parts = source.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(f"got no such folder; {_SOURCES}")
    module, name = source.rpartition(".")[::2]
    try:
        function = getattr(import_module(module), name)
    except Exception as error:
        raise UserError(
            f"got neither a folder nor anything to import ({describe(error)}); check the path, and that PYTHONPATH "
            "has the folder of the module"
        ) from error
    if not callable(function):
        raise UserError(f"got a {type(function).__name__}, which cannot be called; {_SOURCES}")
    return function
