"""What a reader of a run asks first: did self-evolution help, is the model good enough, what next?

The sentences are the same on the page and in the terminal. They are made of `rounds.csv` and of what the test pairs say
of the rounds, as `callbacks.baselines.measure_round` finds it.
"""

import json
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ser_lightning.evaluation.sets import MIN_PROMPTS
from ser_lightning.models.backbone import Backbone
from ser_lightning.models.probe import Use

BASELINE_NAMES = {"longer": "take the longer response", "bag_of_words": "bag of words on the seed"}
Rows = Sequence[Mapping[str, Any]]
"""Lines of `rounds.csv`, by column."""
Measured = Mapping[int, Mapping[str, Any]]
"""What the test pairs say of a round, by its number; empty for rounds and runs without."""


def answers(rows: Rows, measured: Measured, same_seed: bool = True) -> list[str]:
    """Three sentences or so: did it help, is it good enough, what next.

    Args:
        measured: what the test pairs say of the rounds.
        same_seed: whether all rounds were scored out of fold on the same seed pairs.
    """
    delivered = _delivered(rows)
    test = measured.get(int(delivered["round"]), {})
    found = [_did_it_help(rows, delivered, measured, same_seed), _good_enough(delivered, test)]
    if 0 < test.get("prompts", MIN_PROMPTS) < MIN_PROMPTS:
        found.append(
            f"The test pairs are of only {test['prompts']} prompts: all intervals here are rough. Test on more prompts."
        )
    return [sentence for sentence in [*found, _what_next(delivered, test)] if sentence]


def asked_rounds(rows: Rows) -> list[int]:
    """Rounds that `answers` looks up: what is delivered, and where that is the seed model the best other one."""
    found = [_delivered(rows)]
    if found[0]["round"] == 0 and len(rows) > 1:
        found.append(_best_later(rows))
    return [int(row["round"]) for row in found]


def _delivered(rows: Rows) -> Mapping[str, Any]:
    return next((row for row in rows if row["delivered"]), rows[-1])


def _best_later(rows: Rows) -> Mapping[str, Any]:
    return max(rows[1:], key=lambda row: (_or_low(row["seed_oof_accuracy"]), -row["round"]))


def _did_it_help(rows: Rows, delivered: Mapping[str, Any], measured: Measured, same_seed: bool) -> str:
    number = int(delivered["round"])
    if number == 0:
        return _seed_model_delivered(rows, measured, same_seed)
    against = measured.get(number, {}).get("against", {}).get("seed")
    if against is None:
        first, now = rows[0]["seed_oof_accuracy"], delivered["seed_oof_accuracy"]
        if math.isnan(now) or math.isnan(first):
            unknown = f"Unknown: round {number} is delivered, and neither folds nor test pairs judge it"
            return f"Did self-evolution help? {unknown}."
        of = "" if same_seed else ", of other seed pairs"
        return (
            f"Did self-evolution help? No test pairs tell: out of fold on the seed round {number}, which is delivered, "
            f"has {now:.3f} and the seed model {first:.3f}{of}. It was chosen by this figure, which flatters it."
        )
    if not has_interval(against):
        return (
            f"Did self-evolution help? Not shown. Round {number} is delivered; it and the seed model have as many "
            f"test pairs of each prompt right, {delivered['test_accuracy']:.3f} of all."
        )
    verdict = "Yes" if against["low"] > 0 else "No, it did harm" if against["high"] < 0 else "Not shown"
    now, holds = delivered["test_accuracy"], ", which includes 0" if against["low"] <= 0 <= against["high"] else ""
    return (
        f"Did self-evolution help? {verdict}. Round {number} is delivered; its accuracy on the test pairs is "
        f"{now:.3f}, that of the seed model {now - against['difference']:.3f}: paired difference "
        f"{interval_text(against)}{holds}."
    )


def _seed_model_delivered(rows: Rows, measured: Measured, same_seed: bool) -> str:
    if len(rows) == 1:
        kept = "" if rows[0]["kept"] else "; it has kept no pseudo-label"
        return f"Did self-evolution help? There was none: only round 0, the seed model, has been trained{kept}."
    best = _best_later(rows)
    number, first, now = int(best["round"]), *(round(row["seed_oof_accuracy"], 3) for row in (rows[0], best))
    gain = now - first  # of the figures as they are shown
    if not same_seed:
        why = "no later round is better out of fold, on the seed pairs that all rounds have scored"
    elif math.isnan(gain) or gain > 0:
        why = "guards took the later rounds back"
    else:
        lost = f"evolution lost {points(-gain)}" if gain < 0 else "evolution gained nothing"
        why = f"{lost} out of fold on the seed, {now:.3f} in its best round, round {number}, after {first:.3f}"
    text = f"Did self-evolution help? No: {why}, so the seed model is delivered."
    against = measured.get(number, {}).get("against", {}).get("seed")
    return text + (f" On the test pairs round {number} differs from it by {interval_text(against)}." if against else "")


def _good_enough(delivered: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    share = delivered["test_accuracy"]
    if math.isnan(share):
        return "Is it good enough? Unknown: there are no test pairs (data.test_fraction, data.test_path)."
    against = {name: test.get("against", {}).get(key) for key, name in BASELINE_NAMES.items()}
    known = {name: one for name, one in against.items() if one}
    figures = ", ".join(
        f"{name} {share - one['difference']:.3f} (difference {interval_text(one)})" for name, one in known.items()
    )
    if share < 0.5:
        how = "worse" if _is_below_chance(share, test) else "no better"
        verdict = f"No, it is {how} than a coin: its accuracy on the test pairs is {share:.3f}"
    elif not known:
        return f"Is it good enough? Its accuracy on the test pairs is {share:.3f}; no baselines were measured."
    elif missed := [name for name, one in known.items() if one["low"] <= 0]:
        verdict = (
            f"Not shown: it does not clearly beat “{'” and “'.join(missed)}”, and may have learned no more than that"
        )
    else:
        verdict = f"It beats {'both baselines' if len(known) > 1 else 'the baseline'}"
    return f"Is it good enough? {verdict}." + (f" Baselines: {figures}." if figures else "")


def _what_next(delivered: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    if _is_below_chance(delivered["test_accuracy"], test):
        return "Next: look whether the labels are the right way round (data.labels, data.columns)."
    against = test.get("against", {})
    is_unclear = any(against[key]["low"] <= 0 for key in BASELINE_NAMES if against.get(key))
    if is_unclear or delivered["test_accuracy"] < 0.5:
        how = " (the command query)" if delivered["scored"] else ""  # without a pool there is nothing to ask for
        return f"Next: more human labels{how}, or a larger model (model.backbone.path)."
    return ""  # what labels and another round are forecast to gain is said by `report/advice.py`


def _is_below_chance(share: float, test: Mapping[str, Any]) -> bool:
    """Whether an accuracy on the test pairs is below one half by more than chance, as far as its interval is known."""
    return bool(test.get("accuracy_high", share) < 0.5)


def interval_text(paired: Mapping[str, float]) -> str:
    """`+0.008, 95 % interval -0.020 to +0.030`."""
    interval = f", 95 % interval {paired['low']:+.3f} to {paired['high']:+.3f}" if has_interval(paired) else ""
    return f"{paired['difference']:+.3f}{interval}"


def has_interval(paired: Mapping[str, float]) -> bool:
    """False where two models have as many pairs of each prompt right: every resample is 0, as if that were sure."""
    return bool(paired["low"] or paired["high"])


def points(share: float) -> str:
    """A difference of accuracies as percentage points: `4 points`, `0.3 points`."""
    number = f"{100 * share:.1f}".removesuffix(".0")
    return f"{number} point{'' if number == '1' else 's'}"


def _or_low(value: float) -> float:
    return -math.inf if math.isnan(value) else value


_POOL = "predict --config generate.yaml{same} --model.backbone.path {run}"
_RL = "fit --config ppo.yaml{same} --model.backbone.path {run} --model.reward_model RM_RUN"
_NEXT: dict[Use, tuple[tuple[str, str], ...]] = {
    "reward": (
        ("label --run {run}", "label the pairs that are worth it"),
        ("export {run}", "the model as a folder that needs transformers alone"),
        ("score --model {run} --data pairs.jsonl --out scores.csv", "rewards of your own pairs"),
        ("serve {run}", "the model behind HTTP"),
        ("report {run} OTHER_RUN", "compare it with another run"),
    ),
    "sft": (
        (_RL, "train it against a reward model"),
        (_POOL, "its responses as a pool of pairs"),
        ("export {run}", "the policy as a plain transformers folder"),
    ),
    "policy": (
        ("export {run}", "the policy as a plain transformers folder"),
        (_POOL, "its responses as a pool of pairs for a reward model"),
    ),
}
"""What a model is for -> its lines, and what each does."""


def next_steps(program: str, run: str, commands: Collection[str], use: Use = "reward", same: str = "") -> list[str]:
    """What to do with a finished run, a line each.

    Args:
        run: its folder, quoted for a shell.
        commands: those that there are.
        use: what the model of the run is for.
        same: flags that a command on the same policy needs, as `same_flags` gives them.
    """
    lines = [
        (f"  {program} {line.format(run=run, same=same)}", why)
        for line, why in _NEXT[use]
        if line.split()[0] in commands
    ]
    width = max(len(line) for line, _ in lines)
    if width > _WIDEST:
        return ["What to do with it:", *(text for line, why in lines for text in (f"  # {why}", line))]
    return ["What to do with it:", *(f"{line:{width}}  # {why}" for line, why in lines)]


_WIDEST = 80
"""Beyond that what a line is for stands above it."""


def same_flags(backbone: Backbone, paths: str | Sequence[str]) -> str:
    """What another command must be told to go on with a policy: how it was trained, and the same pairs."""
    usual = Backbone("", train="full")
    found = {
        f"model.backbone.{name}": getattr(backbone, name)
        for name in ("train", "dtype", "quantize", "template", "trust_remote_code")
        if getattr(backbone, name) != getattr(usual, name)
    }
    if backbone.train == "lora":
        found |= {
            f"model.backbone.lora.{name}": getattr(backbone.lora, name)
            for name in ("r", "alpha", "target_modules")
            if getattr(backbone.lora, name) != getattr(usual.lora, name)
        }
    if paths != "synthetic":
        found["data.path"] = paths
    return "".join(f" --{name} {shlex.quote(_as_yaml(value))}" for name, value in found.items())


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
