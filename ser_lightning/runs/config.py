"""The config of a run: read as data, and shown to others without its secrets."""

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from ser_lightning.errors import UserError
from ser_lightning.runs.files import CONFIG, reading


@lru_cache(maxsize=4)
def _parsed(text: str) -> Any:
    return yaml.safe_load(text)


def parse_yaml(text: str) -> Any:
    """What `yaml.safe_load` gives, without parsing a text twice: a fit asks for its config after every round."""
    # libyaml's loader is faster, and crashes the process on a file with thousands of brackets.
    return deepcopy(_parsed(text))


def read_config(run: Path) -> dict[str, Any]:
    """The resolved config of a run; `UserError` if the folder has none, or it is no mapping."""
    file = run / CONFIG
    if not file.is_file():
        raise UserError(f"run: {run} has no {CONFIG}; give the folder of a fit")
    with reading(file, has_record=False):
        try:
            config = parse_yaml(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"no YAML: {' '.join(str(error).split())[:200]}") from error
        if not isinstance(config, dict):
            raise UserError(f"run: {file} holds no config; give the folder of a fit")
        _check_size(config)
    return config


_MAX_NODES = 100_000
"""Of a config; one that refers to itself, or to the same part again and again, would have no end."""


def _check_size(config: Any) -> None:
    waiting, seen = [config], 0
    while waiting:
        node, seen = waiting.pop(), seen + 1
        if seen > _MAX_NODES:
            raise ValueError(f"it has more than {_MAX_NODES:,} values")
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list) else []


def setting(run: Path, *keys: str) -> dict[str, Any]:
    """A table in a run's config; `UserError` if there is none."""
    table: Any = read_config(run)
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise UserError(f"run: {run / CONFIG} has no table {'.'.join(keys)}; give the folder of a fit")
    return table


SECRET_KEYS = ("url", "token", "key", "secret", "password", "authorization")
HIDDEN = "(hidden)"


def without_secrets(config: Any) -> Any:
    """A config for others to read: what lies under keys such as `url` or `api_key` is hidden."""
    if isinstance(config, dict):
        return {k: HIDDEN if _is_secret(k, value) else without_secrets(value) for k, value in config.items()}
    return [without_secrets(item) for item in config] if isinstance(config, list) else config


def has_secrets(config: Any) -> bool:
    """Whether `without_secrets` would hide anything."""
    return bool(without_secrets(config) != config)


def _is_secret(key: Any, value: Any) -> bool:
    """The last word of the key tells; the name of an environment variable is no secret."""
    is_named = str(key).lower().replace("-", "_").rpartition("_")[2] in SECRET_KEYS
    return is_named and isinstance(value, str) and bool(value) and not value.startswith("$")
