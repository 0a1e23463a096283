"""Delivered model -> an ordinary `AutoModelForSequenceClassification` folder, scored the same by plain transformers.

The command exports policies as well, see `policy_export.py`.
"""

import csv
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from ser_lightning.backbone import Backbone, LoraSettings, load_tokenizer
from ser_lightning.encode import encode_conversations
from ser_lightning.errors import UserError
from ser_lightning.layouts import pad_right
from ser_lightning.policy_export import export_policy
from ser_lightning.policy_run import POLICY_MODULES, model_kind
from ser_lightning.records import Padded
from ser_lightning.scorer import load_scorer, merged_model
from ser_lightning.scoring import evaluating

SELF_TEST_TOLERANCE = 1e-3
"""Largest difference of a reward (logits) between the trained and the exported float32 model."""
_SELF_TEST = [(f"Question number {i}: what is {i} and {i}?", "It is " + "very " * i + f"{2 * i}.") for i in range(16)]


def main(argv: list[str]) -> None:
    """Command line of `python -m ser_lightning export`."""
    parser = ArgumentParser(
        prog="python -m ser_lightning export", description=__doc__, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("run", type=str, help="run folder of a fit")
    parser.add_argument("--out", type=str | None, default=None, help="folder to write (default: RUN/export)")
    try:
        args = parser.parse_args(argv)
    except ArgumentError as error:
        raise UserError(f"export: {' '.join(str(error).split())}; use `export RUN [--out DIR]`") from error
    run = Path(args.run)
    out = Path(args.out) if args.out else run / "export"
    is_policy = model_kind(run) in POLICY_MODULES
    largest = (export_policy if is_policy else export)(run, out)
    what = "logits" if is_policy else "rewards"
    print(f"Exported to {out}; its {what} differ from the trained model's by at most {largest:.1e}.")


def export(run: Path, out: Path) -> float:
    """Write the delivered round's model as a transformers folder with its tokenizer, zero and temperature.

    The scale stands in `config.json`: `reward_zero`, `reward_temperature` (P(a wins) = sigmoid((r_a - r_b) /
    temperature)), `reward_template_hash`. Adapters are merged into the body at its own precision, never into 4 bits.

    Args:
        run: run folder of a fit that has finished at least round 0.
        out: folder to write; must not exist.

    Returns:
        The largest difference between a reward of the trained model and of the exported one, read back from disk.

    Raises:
        UserError: if there is nothing to export, `out` exists, or the exported model scores differently.
    """
    if out.exists():
        raise UserError(f"--out: {out} exists already; name another folder or remove it")
    delivered = read_reward_run(run)
    backbone = delivered.backbone
    tokenizer = load_tokenizer(backbone)
    tokenizer.model_max_length = delivered.max_length
    trained = load_scorer(backbone)
    trained.load_trainable_state(delivered.weights)
    expected = _self_test_rewards(trained, tokenizer)
    if backbone.quantize != "none":
        trained = load_scorer(replace(backbone, quantize="none"))
        trained.load_trainable_state(delivered.weights)
    model = merged_model(trained)
    model.config.reward_zero, model.config.reward_temperature = delivered.zero, delivered.temperature
    model.config.reward_template_hash = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    plain = AutoModelForSequenceClassification.from_pretrained(out)
    found = _self_test_rewards(_Plain(plain), AutoTokenizer.from_pretrained(out))
    largest = float((found - expected).abs().max())
    if backbone.quantize == "none" and backbone.dtype == "float32" and largest > SELF_TEST_TOLERANCE:
        raise UserError(f"export: rewards of {out} differ by {largest:.2e} from the trained model's; do not use it")
    return largest


@dataclass(frozen=True)
class RewardRun:
    """The reward model that a fit delivered, as its run folder holds it."""

    backbone: Backbone
    max_length: int
    """Most tokens in a conversation."""
    weights: dict[str, Tensor]
    """What was trained, as `Scorer.load_trainable_state` takes it; on the CPU."""
    zero: float
    """The reward of a response that is as often the better as the worse one of its pair."""
    temperature: float
    """P(a wins) = sigmoid((r_a - r_b) / temperature)."""


def read_reward_run(run: Path) -> RewardRun:
    """The delivered round's model, read but not built.

    Raises:
        UserError: if the folder is not that of a fit that has finished at least round 0.
    """
    backbone, max_length = _read_config(run)
    file = run / "rounds" / str(delivered_round(run)) / "model.pt"
    if not file.is_file():
        raise UserError(f"run: {run} has no {file.relative_to(run)}, its delivered model; give a whole run folder")
    saved = torch.load(file, map_location="cpu", weights_only=True)
    return RewardRun(backbone, max_length, saved["weights"], saved["zero"], saved["temperature"])


def delivered_round(run: Path) -> int:
    """The round that `rounds.csv` marks as delivered.

    Raises:
        UserError: if the folder has no finished round.
    """
    file = run / "rounds.csv"
    if not file.is_file():
        raise UserError(f"run: {run} has no rounds.csv; give the folder of a fit that has finished round 0")
    with file.open(newline="", encoding="utf-8") as lines:
        return next(int(row["round"]) for row in csv.DictReader(lines) if row["delivered"] == "1")


class _Plain(torch.nn.Module):
    """A transformers classifier called as users call it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Padded) -> Tensor:
        return self.model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits.float().squeeze(-1)


def _read_config(run: Path) -> tuple[Backbone, int]:
    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"run: {run} has no config.yaml; give the folder of a fit")
    config: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        settings = dict(config["model"]["init_args"]["backbone"])
        lora = LoraSettings(**settings.pop("lora"))
        return Backbone(lora=lora, **settings), config["data"]["init_args"]["max_length"]
    except (KeyError, TypeError) as error:
        raise UserError(f"run: {file} is not that of a reward model ({error}); give the folder of its fit") from error


def _self_test_rewards(scorer: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(16,) rewards of fixed conversations of different lengths, padded on the right in one batch."""
    conversations = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in _SELF_TEST]
    rows = encode_conversations(tokenizer, conversations)  # type: ignore[arg-type]
    with evaluating(scorer):
        return scorer(pad_right(rows, int(tokenizer.pad_token_id)))
