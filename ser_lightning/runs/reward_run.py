"""The reward model that a fit delivered, read from its run folder or from one of its checkpoints."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ser_lightning.errors import UserError, raise_problems
from ser_lightning.models.backbone import Backbone, backbone_from, load_tokenizer
from ser_lightning.models.fingerprint import check_identity, check_trained, identity_of
from ser_lightning.models.probe import errors, start_findings
from ser_lightning.models.reward_model import RewardModel, load_reward_model
from ser_lightning.runs.config import setting
from ser_lightning.runs.files import CONFIG, delivered_round, round_files, run_above
from ser_lightning.runs.weights import check_model, read_model, read_weights

MODULE_PREFIX = "_reward_model."
"""Where `RewardModule` keeps its reward model."""
_SAVED = ("weights", "zero", "temperature", "identity", "reading")


@dataclass(frozen=True)
class RewardRun:
    """The reward model that a fit delivered, as its run folder holds it."""

    backbone: Backbone
    max_length: int
    """Most tokens in a conversation."""
    weights: dict[str, Tensor]
    """What was trained, as `RewardModel.load_trainable_state` takes it; on the CPU."""
    zero: float
    """The reward of a response that is as often the better as the worse one of its pair."""
    temperature: float
    """P(a wins) = sigmoid((r_a - r_b) / temperature)."""
    identity: dict[str, Any] | None = None
    """The base and the template that the weights belong to; None in runs of earlier versions."""
    reading: dict[str, Any] | None = None
    """Where the head reads, as `RewardModule.reading_state` gives it; None = the last token after the last layer."""

    def load(self, device: torch.device | str = "cpu", **changes: Any) -> tuple[RewardModel, PreTrainedTokenizerBase]:
        """The reward model and its tokenizer.

        Args:
            changes: settings of the backbone that are not as in training, such as `quantize="none"`.

        Raises:
            UserError: if the weights belong to another base or template, or to another shape.
        """
        tokenizer = load_tokenizer(self.backbone)
        raise_problems(errors(start_findings(self.backbone, tokenizer, "reward")))
        reward_model = load_reward_model(replace(self.backbone, **changes), device)
        check_identity("run", self.identity, identity_of(reward_model.model, tokenizer))
        self.put_into(reward_model, tokenizer)
        return reward_model, tokenizer

    def put_into(self, reward_model: RewardModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Give a reward model that was just loaded what was trained, and let it read where that was trained to read."""
        if self.reading and reward_model.is_decoder:
            reward_model.read_as(tokenizer, self.reading["readings"], self.reading["question"])
            reward_model.drop_unread_layers()
        reward_model.load_trainable_state(self.weights)


def read_reward_run(run: Path, trust_remote_code: bool = False) -> RewardRun:
    """The delivered round's model, read but not built.

    Args:
        trust_remote_code: run the Python files of its model; the run's own config cannot ask for that.

    Raises:
        UserError: if the folder is not that of a fit that has finished at least round 0.
    """
    backbone, max_length = _read_config(run, trust_remote_code)
    file = round_files(run, delivered_round(run)).model
    if not file.is_file():
        raise UserError(f"run: {run} has no {file.relative_to(run)}, its delivered model; give a whole run folder")
    saved = read_model(file)
    check_trained(str(file), saved["weights"])
    return RewardRun(backbone, max_length, *(saved[key] for key in _SAVED))


def read_reward_checkpoint(file: Path, trust_remote_code: bool = False) -> tuple[Path, RewardRun]:
    """The run folder of a checkpoint (`RUN/checkpoints/last.ckpt`) or of a round's model (`RUN/rounds/0/model.pt`), and
    the model in the file.

    Raises:
        UserError: if there is no such file, it lies in no run, or is that of no reward model.
    """
    if not file.is_file():
        raise UserError(f"--ckpt_path: got {file}, which does not exist; give RUN/checkpoints/last.ckpt or the like")
    run = run_above(file)
    if run is None:
        raise UserError(f"--ckpt_path: got {file}, which lies in no run folder; its config.yaml is needed beside it")
    backbone, max_length = _read_config(run, trust_remote_code)
    saved = read_weights(file)
    if isinstance(saved.get("state_dict"), dict):
        weights = {str(name).removeprefix(MODULE_PREFIX): value for name, value in saved["state_dict"].items()}
        scale, kept = saved.get("reward_scale"), {name: saved.get(name) for name in ("identity", "reading")}
        saved = {"weights": weights, **(scale if isinstance(scale, dict) else {}), **kept}
    if missing := {"weights", "zero", "temperature"} - saved.keys():
        raise UserError(f"--ckpt_path: got {file}, which holds no {min(missing)}; give a checkpoint of a reward model")
    check_model(file, saved)
    check_trained(str(file), saved["weights"])
    saved = {"identity": None, "reading": None, **saved}
    return run, RewardRun(backbone, max_length, *(saved[key] for key in _SAVED))


def _read_config(run: Path, trust_remote_code: bool) -> tuple[Backbone, int]:
    backbone = backbone_from(setting(run, "model", "init_args", "backbone"), str(run / CONFIG), trust_remote_code)
    max_length = setting(run, "data", "init_args").get("max_length")
    if not isinstance(max_length, int) or max_length < 1:
        raise UserError(
            f"run: {run / CONFIG} has the max_length {max_length!r}; give the folder of a reward model's fit"
        )
    return backbone, max_length
