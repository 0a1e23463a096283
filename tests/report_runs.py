"""Run folders made by hand, without a training: what a report reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ser_lightning.runs.files import RoundRow, write_rounds

CONFIG = {
    "seed_everything": 7,
    "trainer": {
        "callbacks": [
            {
                "class_path": "ser_lightning.EvolutionCallback",
                "init_args": {
                    "rule": {
                        "class_path": "ser_lightning.TopShareRule",
                        "init_args": {"share": 0.25},
                    },
                    "max_rounds": 1,
                },
            }
        ]
    },
    "model": {"class_path": "x.RewardModule", "init_args": {"backbone": {"path": "tiny-model", "train": "lora"}}},
    "data": {"class_path": "x.PreferenceDataModule", "init_args": {"path": "pairs.jsonl", "seed_fraction": 0.15}},
}


def row(number: int, delivered: bool = False, **values: Any) -> RoundRow:
    """A line of `rounds.csv`."""
    usual = {
        **{"scored": 4, "kept": 2, "flipped": 0, "status": 1, "pseudo_label_accuracy": 0.75, "pool_accuracy": 0.625},
        **{"seed_oof_accuracy": 0.55, "test_accuracy": 0.7, "calibration_error": 0.051, "length_correlation": -0.123},
        **{"tokens": 12345, "seconds": 2.5},
    }
    return RoundRow(round=number, delivered=delivered, **{**usual, **values})


def card(**values: Any) -> dict[str, Any]:
    """A pair to read."""
    texts = {"prompt": "user: Which?", "response_a": "This.", "response_b": "That."}
    return {"pair_id": "1", **texts, "probability": 0.9, "before": None, "label": 1, "reason": "kept", **values}


def tested(**against: tuple[float, float, float]) -> dict[str, Any]:
    """What the test pairs say of a round: (difference, low, high) from others."""
    usual = {"longer": (0.36, 0.2, 0.5), "bag_of_words": (0.29, 0.1, 0.4), "seed": (0.1, -0.02, 0.2)}
    groups = {"much shorter": {"accuracy": 0.7, "low": 0.5, "high": 0.85, "pairs": 25}}
    figures = {"pairs": 100, "prompts": 90, "accuracy": 0.8, "accuracy_low": 0.7, "accuracy_high": 0.9}
    found = {n: dict(zip(("difference", "low", "high"), v, strict=True)) for n, v in {**usual, **against}.items()}
    return {**figures, "by_length": groups, "against": found}


def notes(**values: Any) -> dict[str, Any]:
    """A `report.json`."""
    usual = {
        "pairs": {"seed": 20, "pool": 4, "test": 100},
        "prompts": {"seed": 13, "pool": 4, "test": 90},
        "test": tested(),
        "labels": {"pseudo_label_accuracy": 4, "pool_accuracy": 8, "seed_oof_accuracy": 20, "test_accuracy": 100},
        "baselines": {"longer": 0.44, "bag_of_words": 0.51},
        "reliability": [{"pairs": 12, "confidence": 0.56, "right": 6}, {"pairs": 8, "confidence": 0.77, "right": 7}],
        "length": [[3, 0.5], [-2, -0.25], [0, 0.1], [4, 1.5]],
        "cards": {"most": [card()], "least": [card(probability=0.5)], "flipped": []},
        "versions": {"torch": "9.9.9"},
        "fingerprints": {"data": "da7a", "base": "", "template": "7e3917"},
    }
    return {**usual, **values}


def write_run(
    folder: str | Path,
    rows: list[RoundRow],
    noted: dict[str, Any] | None = None,
    kept: list[list[int]] | None = None,
    config: dict[str, Any] = CONFIG,
    cost: dict[str, Any] | None = None,
) -> Path:
    """A run folder; `kept` says of four pairs and each round whether they were kept, P goes from 0.9 down."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write_rounds(folder, rows)
    for one in rows:
        here = folder / "rounds" / str(one.round)
        here.mkdir(parents=True)
        # Pair 13 is the one that flips, in round 1.
        probability = np.array([0.9, 0.8, 0.6, 0.45 if one.round else 0.55], np.float32)
        flags = np.array(kept[one.round] if kept else [1, 1, 0, 0], bool)
        columns = {
            "pair_id": np.array([10, 11, 12, 13]),
            "reward_a": np.log(probability / (1 - probability)),
            "reward_b": np.zeros(4, np.float32),
            "probability": probability,
            "label": (probability > 0.5).astype(np.int8),
            "kept": flags,
            "reason": np.where(flags, "kept", "not sure enough"),
        }
        pq.write_table(pa.table(columns), here / "audit.parquet")
        for name, content in (("report.json", noted), ("cost.json", cost)):
            if content is not None:
                (here / name).write_text(json.dumps(content))
    return folder
