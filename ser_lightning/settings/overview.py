"""What `fit --help` says: how configs and flags go together, and every key of the classes that the configs name."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from ser_lightning.settings.check import Config, classes_in
from ser_lightning.settings.keys import Key, Tree, tree_of

WIDTH = 100
USUAL = {"model": "ser_lightning.RewardModule", "data": "ser_lightning.PreferenceDataModule"}
"""The classes of `rm.yaml`, for a command line without a config."""


def run_overview(program: str, command: str, about: str, configs: Sequence[Config], bundled: Sequence[str]) -> str:
    """The text, WIDTH columns wide.

    Args:
        configs: whose classes' keys are listed.
    """
    classes = {**USUAL, **classes_in(configs)}
    tree = tree_of(classes)
    titles = {} if tree is None else dict(classes)
    lines = [f"usage: {program} {command} --config rm.yaml [--config OVERLAY ...] [--key value ...]", ""]
    lines += [f"{about[0].upper()}{about[1:]}.", ""]
    lines += [*_wrapped("Later configs and flags win. Every key of a config is a flag: --data.path my_pairs.jsonl", "")]
    lines += [*_wrapped(f"Bundled configs: {', '.join(bundled)}", "  "), ""]
    if tree is None:
        tree = tree_of(USUAL) or {}
        lines += [*_wrapped(f"{' and '.join(classes.values())}: see --model.help CLASS and --data.help CLASS", ""), ""]
    run = {name: key for name, key in tree.items() if isinstance(key, Key)}
    if titles and "evolution" in tree:
        titles["evolution"] = "rounds of a reward model; null for none"
    lines += ["The run", *_keys(run, ""), ""]
    for name, title in titles.items():
        lines += [f"{name}: {title}", *_keys(tree[name], f"{name}."), ""]
    lines += ["trainer: Lightning's own", *_wrapped(", ".join(tree["trainer"]), "  "), ""]
    last = "--print_config prints the whole config; --model.help CLASS and the like explain another class"
    return "\n".join([*lines, *_wrapped(last, "")])


def _keys(tree: Tree, prefix: str) -> Iterator[str]:
    for name, node in tree.items():
        if isinstance(node, Key):
            head = f"  --{prefix}{name} {_value(node)}".rstrip()
            yield head
            yield from _wrapped(node.help, " " * 6)
        else:
            yield from _keys(node, f"{prefix}{name}.")


def _value(key: Key) -> str:
    """What a value may be, and its default, in brackets."""
    names = [] if "more" in (key.kinds or []) else [_name(kind) for kind in key.kinds or []]
    default = "" if key.default is None or key.default == [] else f" (default: {key.default})"
    return f"{'|'.join(names)}{default}" if len(default) < 60 else "|".join(names)


def _name(kind: Any) -> str:
    return "|".join(map(str, kind["one of"])) if isinstance(kind, dict) else str(kind)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
