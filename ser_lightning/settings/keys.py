"""The keys of a config as a tree, from `keys.json`, which `scripts/config_keys.py` makes of the classes' signatures."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

Tree = dict[str, Any]
"""Name -> a `Key`, or the tree below it."""


@dataclass(frozen=True)
class Key:
    """One setting.

    Attributes:
        kinds: what its value may be: int, float, bool, str, null, {"one of": choices}, or `more`, which only the parser
            can tell; None if it is that alone.
    """

    kinds: list[Any] | None
    default: Any = None
    help: str = ""

    def fits(self, value: Any) -> bool:
        """Whether a value is surely right; a wrong answer costs only time."""
        return self.kinds is not None and any(_is(value, kind) for kind in self.kinds)


def _is(value: Any, kind: Any) -> bool:
    if isinstance(kind, dict):
        return any(type(value) is type(choice) and value == choice for choice in kind["one of"])
    plain = {"int": (int,), "float": (float, int), "bool": (bool,), "str": (str,), "null": (type(None),), "more": ()}
    return type(value) in plain[kind]


RUN_KEYS = {
    "seed_everything": Key(["int"], 0, "seed of weights, splits and batches"),
    "run_dir": Key(["str", "null"], None, "folder of the run; a new one under runs/ by default"),
    "ckpt_path": Key(["str", "null"], None, "last, auto, or a file: go on from there"),
    "weights_only": Key(["bool", "null"]),
}


@cache
def index() -> dict[str, Any]:
    """The content of `keys.json`."""
    found: dict[str, Any] = json.loads((files(__package__) / "keys.json").read_text())
    return found


def knows_trainer() -> bool:
    """Whether the installed Lightning is the one whose Trainer is in the index; another may have other arguments."""
    return index()["lightning"] == version("lightning")


def tree_of(classes: Mapping[str, str]) -> Tree | None:
    """The keys of a run; None where a class is not in the index.

    Args:
        classes: `model` and `data` -> class, as a config names it.
    """
    known = index()["classes"]
    names = {key: name.removeprefix("ser_lightning.") for key, name in classes.items()}
    if names.keys() != {"model", "data"} or not set(names.values()) <= known.keys():
        return None
    branches = {key: known[name] for key, name in names.items()}
    if names["model"] == "RewardModule":  # no other model has rounds
        branches["evolution"] = known["EvolutionCallback"]
    branches["trainer"] = index()["trainer"]
    return {**RUN_KEYS, **{key: _tree(keys) for key, keys in branches.items()}}


def _tree(keys: Mapping[str, Mapping[str, Any]]) -> Tree:
    tree: Tree = {}
    for name, settings in keys.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = Key(**settings)
    return tree
