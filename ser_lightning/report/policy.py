"""A run of SFT or of the RL stage as one page: is the policy better than where it started, and what does it say now?"""

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ser_lightning.errors import UserError
from ser_lightning.report.cards import shorten
from ser_lightning.report.data import flat, read_losses, shown_config
from ser_lightning.report.figures import ACCENT, GOLD, PALE, Picture, draw
from ser_lightning.report.tables import Table, number_text
from ser_lightning.runs.files import SAMPLES, STEPS, reading
from ser_lightning.runs.policy_run import POLICY_MODULES, model_kind
from ser_lightning.runs.shapes import SAMPLE, check_shape

Step = dict[str, float]
"""A line of `steps.csv`; NaN where there is nothing."""
_COLUMNS = {
    "reward": "reward",
    "judge_score": "second scorer",
    "win_rate": "win rate",
    "kl": "KL, nats a response",
    "length": "tokens",
    "eos_rate": "ended by EOS",
    "repetition": "repetition",
}
"""Column of `steps.csv` and its name on the page."""
_SETTINGS = {
    "data": "data.path",
    "model": "model.backbone.path",
    "trained": "model.backbone.train",
    "reward": "model.reward_model",
    "second scorer": "model.judge",
    "advantage": "model.advantage",
    "learning rate": "model.optimizer.lr",
    "epochs": "trainer.max_epochs",
}
"""What a setting is called on the page, and its key."""
STEPS_NOTE = (
    "On the same held-out prompts at every step; step 0 is the starting policy.\n"
    "reward: what the policy is trained on\n"
    "second scorer: one that it is not trained on (model.judge); it falls where the policy games the reward\n"
    "win rate: share of prompts whose answer scores higher than that of the starting policy, by the second scorer if "
    "there is one; a tie counts half\n"
    "KL: how far the policy has moved from the reference policy, from 0 on\n"
    "tokens, ended by EOS: of an answer, and the share of answers that end by themselves before the token limit\n"
    "repetition: share of runs of three words that occur earlier in the answer"
)


@dataclass(frozen=True)
class PolicyRun:
    """A run of `sft.yaml` or `ppo.yaml`, as far as it has come."""

    name: str
    config: dict[str, Any]
    config_text: str
    steps: list[Step]
    losses: np.ndarray
    """(N, 2) optimizer steps made and training loss; none of the RL stage."""
    held_out: np.ndarray
    """(N, 2) the same of the held-out pairs of SFT, after each epoch; none without `data.val_fraction`."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Of the last validation."""


def is_policy_run(path: Path) -> bool:
    """Whether a folder is that of a run that trained a policy."""
    return model_kind(path) in POLICY_MODULES


def read_policy_run(path: Path) -> PolicyRun:
    """What a run of a policy has left; `UserError` if it has logged nothing, or a file in it is damaged."""
    config, text = shown_config(path)
    steps, (losses, _) = _read_steps(path / STEPS), read_losses(path)
    held_out, _ = read_losses(path, "val/loss")
    if not steps and not len(losses):
        raise UserError(f"run: {path} has logged nothing; let its fit go on, or lower trainer.log_every_n_steps")
    made = np.array([1, 0])  # Lightning counts the step of a line from 0
    samples = _read_samples(path / SAMPLES)
    return PolicyRun(path.absolute().name, config, text, steps, losses + made, held_out + made, samples)


def _read_steps(file: Path) -> list[Step]:
    if not file.is_file():
        return []
    with reading(file, has_record=False), file.open(newline="", encoding="utf-8") as lines:
        return [
            {name: float(cell) if cell else math.nan for name, cell in row.items()} for row in csv.DictReader(lines)
        ]


def _read_samples(folder: Path) -> list[dict[str, Any]]:
    files = sorted((file for file in folder.glob("*.jsonl") if file.stem.isdigit()), key=lambda file: int(file.stem))
    if not files:
        return []
    with reading(files[-1], has_record=False):
        found = [json.loads(line) for line in files[-1].read_text(encoding="utf-8").splitlines()]
        check_shape(found, [SAMPLE], "it")
    return found


def policy_values(run: PolicyRun, note: str = "") -> dict[str, Any]:
    """What the page of a policy is rendered from, its outcome behind a note."""
    config = flat(run.config)
    return {
        "title": f"Run {run.name}",
        "outcome": [*([note] if note else []), *_outcome(run)],
        "asked": [(name, str(config[key])) for name, key in _SETTINGS.items() if config.get(key) is not None],
        "tables": [("Steps", _steps_table(run.steps), STEPS_NOTE)] if run.steps else [],
        "pictures": _pictures(run),
        "samples": [
            {name: _cut(value) for name, value in sample.items()} | {"better": _better(sample)}
            for sample in run.samples
        ],
        "config_text": run.config_text,
    }


def _outcome(run: PolicyRun) -> list[str]:
    if not run.steps:
        return _outcome_of_sft(run)
    first, last = run.steps[0], run.steps[-1]
    if last is first:
        return ["Only the starting policy has been asked: there is no step to compare with it."]
    judged = last["judge_score"] == last["judge_score"]
    low, high = last["win_rate_low"], last["win_rate_high"]
    verdict = "Yes" if low > 0.5 else "No, it did harm" if high < 0.5 else "Not shown"
    found = [
        f"Did training help? {verdict}. At step {last['step']:.0f}, {last['win_rate']:.3f} of the held-out prompts get "
        f"an answer that scores higher than that of the starting policy (95 % interval {low:.3f} to {high:.3f}, 0.5 is "
        f"no change), by {'the second scorer' if judged else 'the reward that it is trained on'}.",
        f"The reward that it is trained on went from {first['reward']:.3f} to {last['reward']:.3f}"
        + (f", the second scorer from {first['judge_score']:.3f} to {last['judge_score']:.3f}" if judged else "")
        + f"; answers have {last['length']:.0f} tokens instead of {first['length']:.0f}.",
    ]
    if low <= 0.5 <= high:
        found.append("Next: ask more held-out prompts (data.num_val_prompts), which makes the interval narrower.")
    best = max(run.steps, key=lambda step: step["judge_score"] if judged else step["reward"])
    if judged and best is not last and best["judge_score_low"] > last["judge_score"]:
        found.append(f"The second scorer likes step {best['step']:.0f} best: the policy may game its reward since.")
    return found


def _outcome_of_sft(run: PolicyRun) -> list[str]:
    """How well a run without rewards imitates: it cannot say whether its answers are better."""
    (start, first), (end, last) = run.losses[[0, -1]]
    found = [
        f"The training loss went from {first:.3f} nats a token at step {start:.0f} to {last:.3f} at step {end:.0f}."
    ]
    if len(run.held_out):
        losses = run.held_out[:, 1]
        found.append(f"On held-out responses it went from {losses[0]:.3f} after the first epoch to {losses[-1]:.3f}.")
        if losses.min() < losses[-1]:
            best = f"{losses.min():.3f} after {run.held_out[losses.argmin(), 0]:.0f} steps"
            found.append(f"There it was lowest, {best}: train for fewer epochs.")
    else:
        found.append("No response was held out (data.val_fraction), so it may know these alone.")
    return [*found, "Whether its answers are better, a run against a reward model shows (ppo.yaml)."]


def _steps_table(steps: list[Step]) -> Table:
    shown = {name: title for name, title in _COLUMNS.items() if any(step[name] == step[name] for step in steps)}
    rows = [[f"{step['step']:.0f}", *(_cell(step, name) for name in shown)] for step in steps]
    return Table(["step", *shown.values()], rows)


def _cell(step: Step, name: str) -> str:
    text = number_text(step[name], ".0f" if name == "length" else ".3f")
    low, high = (step.get(f"{name}_{end}", math.nan) for end in ("low", "high"))
    return text if math.isnan(low) else f"{text}\n{low:.3f} to {high:.3f}"


def _pictures(run: PolicyRun) -> list[Picture]:
    found = []
    if len(run.losses):
        text = f"Training loss over {len(run.losses)} logged steps."
        found.append(Picture("Training loss", text, "", _curve(run.losses[:, 0], run.losses[:, 1], "nats a token")))
    if len(run.held_out):
        text = "Loss on held-out responses: " + ", ".join(number_text(value) for value in run.held_out[:, 1])
        curve = _curve(run.held_out[:, 0], run.held_out[:, 1], "nats a token", GOLD)
        found.append(Picture("Loss on held-out responses", text, "", curve))
    x = np.array([step["step"] for step in run.steps])
    for name in ("win_rate", "reward", "judge_score", "kl"):
        y = np.array([step[name] for step in run.steps])
        if len(y) and not np.isnan(y).all():
            bounds = [np.array([step.get(f"{name}_{end}", math.nan) for step in run.steps]) for end in ("low", "high")]
            text = f"{_COLUMNS[name]} by step: " + ", ".join(number_text(value) for value in y)
            note = "" if np.isnan(bounds[0]).all() else "The band is the 95 % interval over prompts."
            note += " 0.5 is no change." if name == "win_rate" else ""
            colour = GOLD if name == "judge_score" else ACCENT
            found.append(Picture(_COLUMNS[name], text, note, _curve(x, y, _COLUMNS[name], colour, *bounds)))
    return found


def _curve(
    x: np.ndarray,
    y: np.ndarray,
    label: str,
    colour: str = ACCENT,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
) -> str:
    """A line with its band, where there is one."""

    def plot(axes: Axes) -> None:
        if low is not None and high is not None:
            axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
        axes.plot(x, y, color=colour, marker="o" if len(x) < 30 else "", ms=4, lw=1.5)
        axes.set(xlabel="step", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, axis="y", color=PALE, lw=0.6)

    return draw(plot, height=3.4)


def _better(sample: dict[str, Any]) -> str:
    """Which answer scores higher, `before` or `after`; empty where neither does."""
    score = "judge_score" if sample["judge_score_after"] is not None else "reward"
    before, after = (sample[f"{score}_{name}"] for name in ("before", "after"))
    return "after" if after > before else "before" if before > after else ""


def _cut(value: Any) -> Any:
    return shorten(value) if isinstance(value, str) else value
