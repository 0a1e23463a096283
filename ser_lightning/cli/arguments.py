"""The command line of a run: its command, its configs, found by path or among the bundled ones, and its flags."""

import os
import re
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ser_lightning.errors import nearest, raise_problems
from ser_lightning.settings.check import Config


@dataclass
class Arguments:
    """A command line in three parts: the command, its configs in order, and the flags, which come after and win."""

    command: str
    configs: list[str]
    flags: list[list[str]]
    names: dict[str, str] = field(default_factory=dict)
    """Path of a config -> how the user called it."""

    def tokens(self) -> list[str]:
        """The command line that the parser gets."""
        return [self.command, *(t for c in self.configs for t in ("--config", c)), *(t for f in self.flags for t in f)]

    def model_class(self) -> str:
        """The class of the model that the configs and flags name last, without its modules; empty where none does."""
        named = [self.value("--model.class_path"), self.value("--model"), *map(class_in, reversed(self.configs))]
        return next(filter(None, named), "").rpartition(".")[2]

    def base_first(self) -> tuple["Arguments", list[str]]:
        """The command line with configs that name a model in front of overlays, and a line where they were not."""
        bases = [path for path in self.configs if class_in(path)]
        is_typed = self.value("--model") or self.value("--model.class_path")
        if is_typed or not self.configs or self.configs[0] in bases:
            return self, []
        first = self.names.get(self.configs[0], self.configs[0])
        if not bases:
            return self, [f"--config: got {first} first, which names no model class; put rm.yaml or the like before it"]
        ordered = replace(self, configs=sorted(self.configs, key=lambda path: path not in bases))
        base = self.names.get(bases[0], bases[0])
        return ordered, [f"--config: got {first} before {base}, which it changes; put {base} first"]

    def read_configs(self) -> list[Config]:
        """What the config files hold, with the names that the user gave them."""
        root = Path(str(files("ser_lightning.configs")))
        return [
            Config(self.names.get(path, path), read_yaml(Path(path)), root in Path(path).resolve().parents)
            for path in self.configs
        ]

    def value(self, flag: str) -> str | None:
        """The value of the last `--flag VALUE` or `--flag=VALUE`, None without one."""
        for tokens in reversed(self.flags):
            name, _, value = tokens[0].partition("=")
            if name == flag:
                return value or " ".join(tokens[1:]) or None
        return None


def split_arguments(argv: list[str]) -> Arguments:
    """Sort `argv` into its parts and find its configs; `UserError` with a line for each config that is not there."""
    names: list[str] = []
    flags: list[list[str]] = []
    rest = iter(argv[1:])
    for token in rest:
        name, equals, value = token.partition("=")
        if name in ("--config", "-c"):
            names.append(value if equals else next(rest, ""))
        elif token.startswith("-") and not _is_number(token):
            flags.append([token])
        elif flags and "=" not in flags[-1][0] and len(flags[-1]) == 1:
            flags[-1].append(token)
        else:
            flags.append([token])
    found = [find_config(name) for name in names]
    raise_problems(_missing_config(name) for name, path in zip(names, found, strict=True) if path is None)
    paths = [str(path) for path in found]
    return Arguments(argv[0], paths, flags, dict(zip(paths, names, strict=True)))


def with_home(word: str) -> str:
    """A word of the command line, with `--to=~/x` expanded as shells expand `--to ~/x`."""
    flag, equals, value = word.partition("=")
    is_path = equals and flag.startswith("--") and (value == "~" or value.startswith("~/"))
    return f"{flag}={os.path.expanduser(value)}" if is_path else word


def class_in(config: str) -> str | None:
    """The class of the model that a config file names; None where it names none, or is no config."""
    content = read_yaml(Path(config))
    model = content.get("model") if isinstance(content, dict) else None
    name = model.get("class_path") if isinstance(model, dict) else None
    return name if isinstance(name, str) else None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; the error, where it is none."""
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        return error


def find_config(name: str) -> Path | None:
    """The file `name`, or the bundled config of that name, or None."""
    bundled = Path(str(files("ser_lightning.configs"))) / name
    return next((path for path in (Path(name), bundled) if name and path.is_file()), None)


def bundled_configs() -> list[str]:
    """The names of the configs that ship with the package, such as `rm.yaml` and `models/qwen2.5-0.5b.yaml`."""
    root = Path(str(files("ser_lightning.configs")))
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.yaml"))


def _missing_config(name: str) -> str:
    known = bundled_configs()
    hint = nearest(name, known) or f"; bundled: {', '.join(known)}"
    return f"--config: got {name!r}, neither a file in {Path.cwd()} nor a bundled config{hint}"


def _is_number(token: str) -> bool:
    return re.fullmatch(r"-[\d.][\d.e+-]*", token) is not None
