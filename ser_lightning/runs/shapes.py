"""What the JSON files of a run must look like, and a check that they do."""

from typing import Any

COST_PARTS = {
    "features": "features",
    "train_folds": "folds, training",
    "train_main": "main, training",
    "score_seed": "out of fold",
    "score_pool": "labelling",
    "score_test": "test",
    "other": "other",
}
"""What a round spends tokens and seconds on; names in its `cost.json` and in a report."""
Shape = type | tuple[type, ...] | dict[str, Any] | list[Any]
"""What JSON must look like: classes, [shape], {key: shape}; `key?` may be missing, `*` is every other key."""
NUMBER = (int, float)
LARGE = 2.0**63
"""No number of a run reaches it; neither does NaN."""
_LIMIT = (int, float, type(None))
_TEXTS: Shape = {"*": str}
_CARDS: Shape = [
    {
        **{"pair_id": str, "prompt": str, "response_a": str, "response_b": str, "reason": str, "label": int},
        **{"probability": NUMBER, "before": _LIMIT},
    }
]
_EVIDENCE: Shape = [
    {
        **{"readings": str, "is_chosen": bool, "penalty": NUMBER, "accuracy": NUMBER, "log_loss": NUMBER},
        **{"advantage": NUMBER, "standard_error": NUMBER},
    }
]
READING: Shape = {"readings": [str], "question": str, "evidence": _EVIDENCE, "answer_accuracy?": _LIMIT}
_GROUP: Shape = {"accuracy": NUMBER, "low": NUMBER, "high": NUMBER, "pairs": NUMBER}
_PAIRED: Shape = {"difference": NUMBER, "low": NUMBER, "high": NUMBER}
_TEST: Shape = {
    **{"pairs?": NUMBER, "prompts?": NUMBER, "accuracy?": NUMBER, "accuracy_low?": NUMBER, "accuracy_high?": NUMBER},
    **{"by_length?": {"*": _GROUP}, "against?": {"*": _PAIRED}},
}
EVALUATION: Shape = {
    "*": {
        **{"pairs": NUMBER, "accuracy": NUMBER, "accuracy_low": NUMBER, "accuracy_high": NUMBER},
        **{"by_length?": {"*": _GROUP}, "by_category?": {"*": _GROUP}, "by_section?": {"*": _GROUP}},
    }
}
SAMPLE: Shape = {
    **{"prompt": str, "before": str, "after": str, "reward_before": NUMBER, "reward_after": NUMBER},
    **{"judge_score_before": _LIMIT, "judge_score_after": _LIMIT},
}
NOTES: Shape = {
    "readings?": _EVIDENCE,
    "round?": int,
    "pairs?": {"*": int},
    "prompts?": {"*": int},
    "test?": _TEST,
    "labels?": {"*": int},
    "effective_labels?": {"*": NUMBER},
    "baselines?": {"longer?": NUMBER, "bag_of_words?": NUMBER},
    "reliability?": [{"pairs": int, "confidence": NUMBER, "right": NUMBER}],
    "length?": [[NUMBER]],
    "cards?": {"most": _CARDS, "least": _CARDS, "flipped": _CARDS, "mistakes?": _CARDS, "overruled?": _CARDS},
    "versions?": _TEXTS,
    "fingerprints?": _TEXTS,
}
GUARDS: Shape = [
    {"guard": str, "value": _LIMIT, "limit": _LIMIT, "fired": bool, "level": str, "action": str, "meaning": str}
]
COST: Shape = {f"{part}?": {"tokens": NUMBER, "seconds": NUMBER} for part in COST_PARTS}
ADVICE: Shape = {
    "is_solved": bool,
    "seed_pairs": int,
    "min_gain": NUMBER,
    "labels": [{"labels": int, "gain": NUMBER, "low": NUMBER, "high": NUMBER}],
    "next_round": _LIMIT,
    "frozen_accuracy?": _LIMIT,
    "answer_accuracy?": _LIMIT,
    "delivered_accuracy?": _LIMIT,
}
IDENTITY: Shape = {"base": str, "template": str, "matrices?": {"*": [NUMBER]}}


def check_shape(value: Any, shape: Shape, where: str) -> None:
    """`ValueError` where a value is not of a shape, or a number in it is none; keys of later versions may be there."""
    if isinstance(shape, dict) and isinstance(value, dict):
        if missing := [key for key in shape if key != "*" and not key.endswith("?") and key not in value]:
            raise ValueError(f"{where} has no {missing[0]}")
        for key, one in value.items():
            known = next((shape[name] for name in (key, f"{key}?", "*") if name in shape), None)
            if known is not None:
                check_shape(one, known, f"{where}.{key}")
    elif isinstance(shape, list) and isinstance(value, list):
        for one in value:
            check_shape(one, shape[0], where)
    elif isinstance(shape, (dict, list)) or not isinstance(value, shape):
        raise ValueError(f"{where} is a {type(value).__name__}")
    elif isinstance(value, (int, float)) and not abs(value) < LARGE:
        raise ValueError(f"{where} is {str(value)[:20] if isinstance(value, float) else 'a huge number'}")
