"""Write `ser_lightning/settings/keys.json`: every key of a config with its type, default and help.

python scripts/config_keys.py
"""

import json
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer, __version__

import ser_lightning

FILE = Path(ser_lightning.__file__).parent / "settings" / "keys.json"
MODELS = ("RewardModule", "PPOModule", "SFTModule", "GenerateModule")
DATA = ("PreferenceDataModule", "PromptDataModule", "ResponseDataModule")
PLAIN = {int: "int", float: "float", bool: "bool", str: "str", type(None): "null"}


def kinds(hint: Any) -> list[Any] | None:
    """What a value may be, names of plain types and choices, and `more`; None where it is nothing that has a name."""
    if hint in PLAIN:
        return [PLAIN[hint]]
    if get_origin(hint) is Literal:
        return [{"one of": list(get_args(hint))}]
    if get_origin(hint) in (Union, types.UnionType):
        parts = [kinds(part) or ["more"] for part in get_args(hint)]
        found = [kind for part in parts for kind in part if kind != "more"]
        return found + ["more"] * (["more"] in parts) if found else None
    return None


def keys_of(cls: type) -> dict[str, Any]:
    """Dotted key -> type, default and help of a class's arguments, those of its dataclasses in their place."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "x", fail_untyped=False)
    found = {}
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        if not action.dest.startswith("x.") or action.dest.endswith(".help") or hint is None:
            continue
        default = action.default if isinstance(action.default, str | int | float | bool | list) else None
        text = " ".join((action.help or "").replace("%%", "%").split())
        found[action.dest.removeprefix("x.")] = {"kinds": kinds(hint), "default": default, "help": text}
    return found


def collect() -> dict[str, Any]:
    """All of it."""
    classes = {name: keys_of(getattr(ser_lightning, name)) for name in (*MODELS, *DATA, "EvolutionCallback")}
    return {"lightning": __version__, "classes": classes, "trainer": keys_of(Trainer)}


if __name__ == "__main__":
    FILE.write_text(json.dumps(collect(), indent=1) + "\n")
