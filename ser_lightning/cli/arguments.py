"""The command line of a run: its command, its configs, found by path or among the bundled ones, and its flags."""

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ser_lightning.errors import nearest, raise_problems


@dataclass
class Arguments:
    """A command line in three parts: the command, its configs in order, and the flags, which come after and win."""

    command: str
    configs: list[str]
    flags: list[list[str]]

    def tokens(self) -> list[str]:
        """The command line that the parser gets."""
        return [self.command, *(t for c in self.configs for t in ("--config", c)), *(t for f in self.flags for t in f)]

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
    return Arguments(argv[0], [str(path) for path in found], flags)


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
