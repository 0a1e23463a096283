"""Every problem in the arguments of a run, one line each.

jsonargparse stops at the first problem and shows it in a page of nested type errors. So on any error the arguments
are parsed again piece by piece, each piece on top of the ones that were good: a piece that fails is a problem whose
key and value are known, whatever the message looks like.
"""

import inspect
import json
import re
import sys
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from jsonargparse import Namespace

from ser_lightning.cli.arguments import Arguments, class_in, read_yaml
from ser_lightning.errors import nearest
from ser_lightning.settings.check import hint_for, shown

CLASS_PATH = "class_path"
ARGS = ("init_args", "dict_kwargs")
PLAIN = {"float": "a number", "int": "an integer", "bool": "true or false", "str": "text"}
PUBLIC = ("ser_lightning", "lightning.pytorch.callbacks", "lightning.pytorch.loggers", "torch.optim")
"""Modules whose classes a config may mean."""


class ParseError(Exception):
    """What the parser says about its arguments; neither a TypeError nor a ValueError, which jsonargparse catches."""


Wrap = Callable[[Any], list[str]]


def _wrap_key(wrap: Wrap, kept: dict[str, Any], key: str, value: Any) -> list[str]:
    return wrap({**kept, key: value})


def _wrap_item(wrap: Wrap, kept: list[Any], value: Any) -> list[str]:
    return wrap([*kept, value])


class Diagnosis:
    """Find every problem of a command line."""

    def __init__(self, parse: Callable[[list[str]], Namespace], arguments: Arguments) -> None:
        self.parse = parse
        self.arguments = arguments
        self.configs: list[dict[str, Any]] = []
        self.flags: list[list[str]] = []
        self.problems: list[str] = []

    def run(self) -> list[str]:
        """One line for each problem."""
        self.arguments, self.problems = self.arguments.base_first()
        if self.problems and not any(map(class_in, self.arguments.configs)):
            return self.problems
        for path in self.arguments.configs:
            self._check_config(path)
        if len(self.configs) < len(self.arguments.configs):
            return self.problems  # what else is missing may stand in a file that cannot be read
        self._check_flags([f for f in self.arguments.flags if not f[0].startswith(("--print_config", "--help", "-h"))])
        self._check_required()
        return self.problems

    def _good(self, without: Collection[str] = ()) -> list[str]:
        """The command line of all that was good so far, without what it says about some keys."""
        configs = [_as_flag(_drop(config, without)) for config in self.configs]
        flags = [t for flag in self.flags if not _is_below(_key_of(flag), without) for t in flag]
        return [self.arguments.command, *configs, *flags]

    def _check_config(self, path: str) -> None:
        content, name = read_yaml(Path(path)), self.arguments.names.get(path, path)
        if isinstance(content, Exception):
            self.problems.append(f"{name}: not a YAML file: {_one_line(str(content))}")
            return
        if not isinstance(content, dict):
            self.problems.append(f"{name}: got {shown(content)}; a config is a table of keys such as model: and data:")
            return
        good = self._good()
        kept = self._good_part(lambda part: [*good, _as_flag(part)], content, [], name, good)
        self.configs.append(kept or {})

    def _check_flags(self, flags: list[list[str]]) -> None:
        """Sort out those that do not parse on top of all that was good before them."""
        while flags:
            good = self._good()

            def is_too_long(last: int, good: list[str] = good, flags: list[list[str]] = flags) -> bool:
                """Whether flags up to this one do not parse; then neither do more of them."""
                return self._error([*good, *(t for flag in flags[: last + 1] for t in flag)]) is not None

            number = bisect_left(range(len(flags)), True, key=is_too_long)
            self.flags += flags[:number]
            for flag in flags[number : number + 1]:
                self._report_flag(flag)
            flags = flags[number + 1 :]

    def _report_flag(self, flag: list[str]) -> None:
        good = self._good()
        if not flag[0].startswith("--"):
            self.problems.append(f"command line: got {flag[0]!r}, which belongs to no option; options start with --")
            return
        value = flag[0].partition("=")[2] or " ".join(flag[1:])
        self._report(_key_of(flag).split("."), value, self._error([*good, *flag]) or "", "command line", good)

    def _check_required(self) -> None:
        """Report what is missing once all that was given is good; the parser names the gaps of one key at a time."""
        incomplete: list[str] = []
        while (error := self._error(self._good(incomplete), with_required=True)) is not None:
            found = re.search(r"arguments are required: (.*)", error)
            if found is None:
                self.problems.append(_one_line(error))
                return
            inside = re.match(r'Parser key "([\w.]+)"', error)
            names = found[1].split(", ")
            names = [f"{inside[1]}.{name}" for name in names] if inside else [name.split(".", 1)[-1] for name in names]
            self.problems += [
                f"{name}: required, got nothing; set it with --{name} or in a config"
                + (" (--config rm.yaml)" if name in ("model", "data") else "")
                for name in names
                if name not in incomplete
            ]
            if inside is None:
                return
            incomplete.append(inside[1])

    def _good_part(self, wrap: Wrap, value: Any, path: list[str], source: str, context: list[str]) -> Any:
        """The part of `value` that parses within `wrap`; what does not is reported.

        Args:
            wrap: a value at `path` -> the command line that sets it on top of all that was good so far.
            path: the keys that lead to `value`, without `init_args`.
            source: where `value` stands.
            context: a good command line whose config holds the parent of `value`.
        """
        error = self._error(wrap(value))
        if error is None:
            return value
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return self._good_items(wrap, value, path, source, context)
        if not isinstance(value, dict) or not value:
            self._report(path, value, error, source, context)
            return None
        kept = {CLASS_PATH: value[CLASS_PATH]} if CLASS_PATH in value else {}
        if (error := self._error(wrap(kept))) is not None:
            self._report(path, value.get(CLASS_PATH, value), error, source, context)
            return None
        for key, child in value.items():
            if key not in kept:
                before = len(self.problems)
                name = [] if key in ARGS else [str(key)]
                wrap_child = partial(_wrap_key, wrap, dict(kept), key)
                part = self._good_part(wrap_child, child, [*path, *name], source, wrap(kept))
                if part is not None or len(self.problems) == before:
                    kept[key] = part
        return kept

    def _good_items(self, wrap: Wrap, items: list[Any], path: list[str], source: str, context: list[str]) -> list[Any]:
        kept: list[Any] = []
        for item in items:
            part = self._good_part(partial(_wrap_item, wrap, list(kept)), item, path, source, context)
            if part is not None:
                kept.append(part)
        return kept

    def _error(self, tokens: list[str], with_required: bool = False) -> str | None:
        try:
            self.parse(tokens)
        except ParseError as error:
            message = str(error)
            return None if "arguments are required" in message and not with_required else message
        return None

    def _report(self, path: list[str], value: Any, error: str, source: str, context: list[str]) -> None:
        key = ".".join(part.removesuffix("+") for part in path)
        if re.search(r"is not accepted|not accept option|unrecognized arguments", error):
            hint = self._suggest([part.removesuffix("+") for part in path], context)
            self.problems.append(f"{key} ({source}): unknown key, got {shown(value)}{hint}")
        else:
            self.problems.append(f"{key} ({source}): got {shown(value)}; {reason(error)}")

    def _suggest(self, path: list[str], context: list[str]) -> str:
        """`; did you mean ...?` for the first part of `path` that the parser does not know."""
        try:
            node: Any = self.parse(context)[self.arguments.command]
        except ParseError:
            return ""
        return hint_for(path, _tree(node))


def null_problems(config: Namespace, path: str = "", owner: type | None = None) -> Iterator[str]:
    """A line for each null where its owner takes none: the parser lets null pass for anything.

    Args:
        path: keys that lead to the part, without `init_args`.
        owner: whose arguments the part holds; None where nothing is known of them.
    """
    hints = {} if owner is None else _hints(owner)
    for name, value in vars(config).items():
        key = f"{path}.{name}".removeprefix(".")
        hint = hints.get(name)
        if value is None and hint is not None and not _takes_null(hint):
            yield f"{key}: got null; give {_type_name(_name_of(hint))}"
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, Namespace) and CLASS_PATH in part:
                yield from null_problems(part.get("init_args") or Namespace(), key, _import(part[CLASS_PATH]))
            elif isinstance(part, Namespace):
                yield from null_problems(part, key, hint if isinstance(hint, type) else None)


def _hints(owner: type) -> dict[str, Any]:
    """The types of what a class takes, of those that its `**kwargs` hand on to a base class too; no default is null."""
    found: dict[str, Any] = {}
    for one in owner.__mro__:
        if "__init__" not in vars(one):
            continue
        try:
            parameters = inspect.signature(one.__init__, eval_str=True).parameters  # type: ignore[misc]
        except (NameError, TypeError, ValueError):  # a class that imports its types for a type checker alone
            break
        given = {
            n: p.annotation for n, p in parameters.items() if p.annotation is not p.empty and p.default is not None
        }
        found = {**given, **found}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
            break
    return found


def _takes_null(hint: Any) -> bool:
    return hint in (Any, None, type(None)) or type(None) in get_args(hint)


def _name_of(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _import(class_path: str) -> type | None:
    module, _, name = class_path.rpartition(".")
    found = getattr(import_module(module), name, None)
    return found if isinstance(found, type) else None


def _tree(node: Any) -> dict[str, Any]:
    """The names in a parsed config, by level; of a class its arguments, of a list those of the last item."""
    if isinstance(node, list) and node:
        node = node[-1]
    if isinstance(node, Namespace) and CLASS_PATH in node:
        node = node.get("init_args")
    return {name: _tree(child) for name, child in vars(node).items()} if isinstance(node, Namespace) else {}


def _as_flag(config: Any) -> str:
    return f"--config={json.dumps(config, default=str)}"


def _key_of(flag: list[str]) -> str:
    return flag[0].partition("=")[0].removeprefix("--").removesuffix("+")


def _is_below(key: str, roots: Collection[str]) -> bool:
    return any(key == root or key.startswith(f"{root}.") for root in roots)


def _drop(config: dict[str, Any], keys: Collection[str], prefix: str = "") -> dict[str, Any]:
    """A config without the branches at `keys`."""
    kept = {}
    for name, value in config.items():
        key = f"{prefix}{name.removesuffix('+')}"
        if key not in keys:
            kept[name] = _drop(value, keys, f"{key}.") if isinstance(value, dict) else value
    return kept


def reason(error: str) -> str:
    """The part of a jsonargparse message that says what would have been right, on one line."""
    if found := re.search(r"Problem with given class_path '([^']*)':\s*(.*)", error):
        if re.match(r"No module named|module .* has no attribute", found[2]):
            return _unknown_class(found[1])
        return f"cannot use class {found[1]}: {_one_line(found[2])}"
    if bases := re.findall(r"(?:to be a|correspond to a) subclass of (?:<class ')?([\w.]+)|protocol (\w+)", error):
        names = dict.fromkeys(_type_name(base or protocol) for base, protocol in bases)
        return f"give a class that is a {' or '.join(names)}"
    expected = re.findall(r"^( *).*?Expected an? (.*?)(?:\. Got value.*)?$", error, flags=re.MULTILINE)
    kinds = [(len(indent), kind) for indent, kind in expected if not kind.startswith(("dot import path", "path but"))]
    classes = re.findall(r"^( *).*?Expected a dot import path string: (.*)$", error, flags=re.MULTILINE)
    deepest = max([depth for depth, _ in kinds] + [len(indent) for indent, _ in classes], default=0)
    names = dict.fromkeys(_type_name(kind) for depth, kind in kinds if depth == deepest)
    if classes and not set(names) - {"null"}:
        return _unknown_class(classes[0][1])
    if names:
        return f"give {' or '.join(names)}"
    return _one_line(error)


def _unknown_class(name: str) -> str:
    """What to say of a class that is not there, with the public class of nearly that name."""
    module, _, short = name.rpartition(".")
    public = {n: f"{m}.{n}" for m in PUBLIC if m in sys.modules for n in getattr(sys.modules[m], "__all__", ())}
    hint = nearest(short, public).removeprefix("; did you mean ").removesuffix("?")
    if hint and (not module or public[hint].startswith(module)):
        return f"unknown class; did you mean {public[hint]}?"
    return "unknown class; give its dotted path, and check that PYTHONPATH has its package"


def _type_name(text: str) -> str:
    text = re.sub(r"<class '([^']*)'>", r"\1", text)
    if text in PLAIN:
        return PLAIN[text]
    if found := re.match(r"typing\.Literal\[(.*)\]", text):
        return f"one of {found[1]}"
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", text).replace("NoneType", "null")


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:297]}..."
