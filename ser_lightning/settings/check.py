"""Unknown keys of a command line, found without the parser, whose imports take seconds.

Only where everything else is plainly right: on any doubt nothing is said here, and the parser finds all problems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ser_lightning.errors import nearest
from ser_lightning.settings.keys import Key, Tree, knows_trainer, tree_of

ELSEWHERE = {
    **dict.fromkeys(("lr", "learning_rate"), ("model.optimizer.lr",)),
    "weight_decay": ("model.optimizer.weight_decay",),
    **dict.fromkeys(
        ("batch_size", "train_batch_size", "per_device_train_batch_size"),
        ("data.pairs_per_step", "data.responses_per_step", "data.prompts_per_step"),
    ),
    **dict.fromkeys(("eval_batch_size", "per_device_eval_batch_size"), ("data.tokens_per_scoring_batch",)),
    **dict.fromkeys(("gradient_accumulation_steps",), ("data.tokens_per_batch", "model.tokens_per_batch")),
    **dict.fromkeys(("max_grad_norm", "gradient_clip_val"), ("model.max_grad_norm",)),
    **dict.fromkeys(("epochs", "num_train_epochs"), ("evolution.seed_epochs", "trainer.max_epochs")),
    **dict.fromkeys(("model_name_or_path", "model_name", "path"), ("model.backbone.path",)),
    **dict.fromkeys(("max_seq_length", "max_seq_len"), ("data.max_length",)),
    **dict.fromkeys(("lora_r", "lora_rank", "rank"), ("model.backbone.lora.r",)),
    "lora_alpha": ("model.backbone.lora.alpha",),
    "lora_dropout": ("model.backbone.lora.dropout",),
    "load_in_4bit": ("model.backbone.quantize",),
    "warmup_ratio": ("model.warmup_share",),
    "lr_scheduler_type": ("model.lr_decay",),
    **dict.fromkeys(("bf16", "fp16", "torch_dtype"), ("model.backbone.dtype",)),
    **dict.fromkeys(("gpus", "num_gpus"), ("trainer.devices",)),
    "logging_steps": ("trainer.log_every_n_steps",),
    "seed": ("seed_everything",),
    "output_dir": ("run_dir",),
}
"""What other trainers call a setting -> where it is here; the first key that the config has."""
COMMAND_LINE = "command line"
"""Where a flag stands, in messages."""


@dataclass(frozen=True)
class Config:
    """A config file.

    Attributes:
        is_bundled: it ships with the package, and its values are right.
    """

    name: str
    content: Any
    is_bundled: bool


class Unsure(Exception):
    """Something that only the parser can judge."""


def unknown_keys(configs: Sequence[Config], flags: Sequence[Sequence[str]]) -> list[str]:
    """A line for each unknown key; none where there is none, or where something else may be wrong as well.

    Args:
        configs: in their order, the bundled one that names the classes first.
        flags: `--key value` or `--key=value`, in words.
    """
    if not configs or not configs[0].is_bundled or classes_in(configs[:1]).keys() != {"model", "data"}:
        return []
    if (tree := tree_of(classes_in(configs))) is None:
        return []
    problems: list[str] = []
    try:
        for config in configs:
            if not config.is_bundled:
                _check(tree, tree, _table(config.content), [], config.name, problems)
        for words in flags:
            path, text = _flag(words)
            _check(tree, tree, _nested(path, text), [], COMMAND_LINE, problems)
    except (Unsure, yaml.YAMLError):
        return []
    return problems


def classes_in(configs: Sequence[Config]) -> dict[str, str]:
    """`model` and `data` -> the class that the last config names."""
    found = {}
    for config in configs:
        for key in ("model", "data"):
            branch = config.content.get(key) if isinstance(config.content, dict) else None
            if isinstance(branch, dict) and isinstance(name := branch.get("class_path"), str):
                found[key] = name
    return found


def _check(root: Tree, tree: Tree, given: Mapping[str, Any], path: list[str], source: str, problems: list[str]) -> None:
    for written, value in given.items():
        name = str(written).removesuffix("+")
        if name == "init_args":
            _check(root, tree, _table(value), path, source, problems)
        elif name == "class_path":  # one that the index has, else there were no tree
            continue
        elif name not in tree:
            _unknown(root, [*path, name], value, source, problems)
        elif isinstance(node := tree[name], Key):
            is_text = source == COMMAND_LINE and isinstance(value, str)
            if not node.fits(yaml.safe_load(value) if is_text else value):
                raise Unsure
        else:
            _check(root, node, _table(value), [*path, name], source, problems)


def _unknown(root: Tree, path: list[str], value: Any, source: str, problems: list[str]) -> None:
    if isinstance(value, dict | list) or (path[0] == "trainer" and not knows_trainer()) or len(path) == 1:
        raise Unsure
    problems.append(f"{'.'.join(path)} ({source}): unknown key, got {shown(value)}{hint_for(path, root)}")


def hint_for(path: list[str], root: Tree) -> str:
    """`; did you mean ...?` for the first part of a key that is not in a tree; empty where nothing is near."""
    for key in ELSEWHERE.get(path[-1], ()):
        if _has(root, key.split(".")):
            return f"; did you mean {key}?"
    node: Any = root
    for depth, part in enumerate(path):
        if part not in (known := node if isinstance(node, dict) else {}):
            hint, _, name = nearest(part, known).rpartition(" ")
            return f"{hint} {'.'.join([*path[:depth], name])}" if hint else ""
        node = known[part]
    return ""


def _has(tree: Any, path: list[str]) -> bool:
    for part in path:
        if isinstance(tree, Key):
            return tree.kinds is None  # of a class, such as the optimizer's `lr`
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def shown(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unsure
    return value


def _flag(words: Sequence[str]) -> tuple[list[str], str]:
    """The parts of a flag's key, and its value as it was written."""
    name, equals, text = words[0].partition("=")
    if not name.startswith("--") or len(words) != (1 if equals else 2):
        raise Unsure
    return name.removeprefix("--").split("."), text if equals else words[1]


def _nested(path: list[str], value: Any) -> dict[str, Any]:
    for part in reversed(path):
        value = {part: value}
    return dict(value)
