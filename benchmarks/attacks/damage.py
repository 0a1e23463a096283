"""Runs and models as they break, and as somebody may send them: each from a number, with what is right to happen."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors.torch import load_file, save_file

from ser_lightning.utils.checksums import CHECKSUMS

Right = Literal["same", "refused", "any"]
"""The command gives what it gives for the sound folder or refuses; it refuses; it may do either."""
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        3.5,
        10**400,
        float("nan"),
        float("inf"),
        -float("inf"),
        "",
        "x",
        "12",
        "../../x",
        "[/b]",
        "\x1b[2J",
    ),
    *([], [1], {}, {"x": 1}, {"class_path": "os.getcwd"}, "null", "\ud800"),
)


@dataclass(frozen=True)
class Damage:
    """What was done to a folder."""

    kind: str
    right: Right


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _zeros(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content))
    length = min(len(content) - start, rng.randint(1, 400))
    return content[:start] + bytes(length) + content[start + length :]


BYTES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "cut": lambda rng, content: content[: rng.randrange(1, len(content))],
    "a bit turned": _flip,
    "zeros": _zeros,
    "empty": lambda rng, content: b"",
    "binary": lambda rng, content: rng.randbytes(200),
    "longer": lambda rng, content: content + rng.randbytes(20),
}


def damage_run(number: int, run: Path) -> Damage:
    """Damage a copy of a sound run of two rounds or more.

    Args:
        number: which damage.
        run: the copy.
    """
    rng = random.Random(f"run {number}")
    ways = (
        _bytes_of_round,
        _bytes_of_round,
        _bytes_of_table,
        _swap,
        _cell,
        _value_of_round,
        _model,
        _config,
        _checkpoint,
    )
    return ways[number % len(ways)](rng, run)


def _round(rng: random.Random, run: Path) -> Path:
    found: Path = rng.choice(sorted((run / "rounds").iterdir()))
    return found


def _bytes_of_round(rng: random.Random, run: Path) -> Damage:
    file = rng.choice(sorted(path for path in _round(rng, run).iterdir() if not path.name.startswith("phase")))
    return _break(rng, file)


def _bytes_of_table(rng: random.Random, run: Path) -> Damage:
    return _break(rng, run / rng.choice(("rounds.csv", CHECKSUMS)))


def _break(rng: random.Random, file: Path) -> Damage:
    name = rng.choice([*BYTES, "gone"])
    content = file.read_bytes()
    if name == "gone":
        file.unlink()
        # Without its files of notes a round of an earlier version looks like that, and without a record as well.
        return Damage(f"{file.name}: gone", "any" if file.suffix == ".json" or file.name == "audit.parquet" else "same")
    changed = BYTES[name](rng, content)
    file.write_bytes(changed)
    return Damage(f"{file.name}: {name}", "same")


def _swap(rng: random.Random, run: Path) -> Damage:
    """A file of another round in the place of this one's."""
    one, other = sorted((run / "rounds").iterdir())[:2]
    if rng.random() < 0.5:
        one, other = other, one
    name = rng.choice(("model.pt", "audit.parquet", "report.json", "cost.json"))
    (one / name).write_bytes((other / name).read_bytes())
    return Damage(f"{name}: of another round", "same")


def forget(folder: Path) -> None:
    """Take the record of checksums away, as somebody does who changes a file on purpose."""
    (folder / CHECKSUMS).unlink(missing_ok=True)


def _cell(rng: random.Random, run: Path) -> Damage:
    """A cell of `rounds.csv` that cannot be, without a record."""
    forget(run)
    lines = [line.split(",") for line in (run / "rounds.csv").read_text().splitlines()]
    name, value = rng.choice(
        [
            *(("round", v) for v in ("7", "nan", "../../x", "")),
            *(("delivered", v) for v in ("", "nan", "../../x", "2 1", "inf")),
            *(("test_accuracy", v) for v in ("1.5", "-1", "inf", "x")),
            *(("kept", v) for v in ("-1", "nan", "many", "1e999")),
        ]
    )
    lines[rng.randint(1, len(lines) - 1)][lines[0].index(name)] = value
    (run / "rounds.csv").write_text("\n".join(map(",".join, lines)) + "\n")
    return Damage(f"rounds.csv: {name} {value!r}", "refused")


def _leaves(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        found.append((*path, key))
        if isinstance(value, (dict, list)):
            found += _leaves(value, (*path, key))
    return found


def set_somewhere(rng: random.Random, content: Any) -> str:
    """Give one place of a tree another value, or none.

    Returns:
        The place.
    """
    path = rng.choice(_leaves(content))
    node = content
    for key in path[:-1]:
        node = node[key]
    if rng.random() < 0.2:
        del node[path[-1]]
    else:
        node[path[-1]] = rng.choice(ODD)
    return ".".join(str(key) for key in path if not isinstance(key, int))


def _value_of_round(rng: random.Random, run: Path) -> Damage:
    """Another value in a JSON of a round, without a record: it may be one that could be."""
    folder = _round(rng, run)
    forget(folder)
    file = rng.choice(sorted(folder.glob("*.json")))
    content = json.loads(file.read_text())
    set_somewhere(rng, content)
    file.write_text(json.dumps(content))
    return Damage(f"{file.name}: a value", "any")


def _model(rng: random.Random, run: Path) -> Damage:
    """A model file that can be read and cannot be, in every round, without a record."""
    kind, change = rng.choice(list(MODEL_FAULTS.items()))
    for folder in sorted((run / "rounds").iterdir()):
        forget(folder)
        saved = torch.load(folder / "model.pt", weights_only=True)
        torch.save(change(saved), folder / "model.pt")
    return Damage(f"model.pt: {kind}", "refused")


def _without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda saved: {name: value for name, value in saved.items() if name != key}


def _with(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda saved: {**saved, **changes}


def _with_weights(change: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], Any]:
    def changed(saved: dict[str, Any]) -> Any:
        name = next(iter(saved["weights"]))
        return {**saved, "weights": {**saved["weights"], name: change(saved["weights"][name])}}

    return changed


MODEL_FAULTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{
        f"the temperature {v!r}": _with(temperature=v)
        for v in (0.0, -1.0, float("nan"), float("inf"), "1", None, [1.0])
    },
    **{f"the zero {v!r}": _with(zero=v) for v in (float("nan"), float("-inf"), "0", None)},
    **{f"no {key}": _without(key) for key in ("weights", "zero", "temperature")},
    "weights that are a list": _with(weights=[1, 2]),
    "no tensor at all": _with(weights={}),
    "NaN": _with_weights(lambda w: torch.full_like(w, float("nan"))),
    "infinity": _with_weights(lambda w: torch.full_like(w, float("inf"))),
    "another shape": _with_weights(lambda w: torch.zeros(3, 3)),
    "a number for a tensor": _with_weights(lambda w: 1.0),
    "a list": lambda saved: [saved],
    "the identity of another base": lambda saved: {**saved, "identity": {**saved["identity"], "base": "0" * 16}},
    "the identity of another template": lambda saved: {
        **saved,
        "identity": {**saved["identity"], "template": "0" * 16},
    },
    "an identity that is a list": _with(identity=[1]),
}

CONFIGS = {
    "a list": b"- a\n- b\n",
    "binary": b"\x00\xff\xfe\x01",
    "a tag of YAML": b"model: !!python/object/apply:os.getcwd []\n",
    "a number": b"5\n",
    "nothing": b"",
    "a cycle": b"model: &m {init_args: *m}\n",
    "a bomb": b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (c + 1, c + 1, c, c) for c in range(97, 122)),
    "deep": b"{a: " * 2000,
    "no mapping below": b"model: 5\ndata: [1]\n",
}


def _config(rng: random.Random, run: Path) -> Damage:
    file = run / "config.yaml"
    if rng.random() < 0.4:
        name, content = rng.choice(list(CONFIGS.items()))
        file.write_bytes(content)
        return Damage(f"config.yaml: {name}", "any")
    content = yaml.safe_load(file.read_text())
    part = rng.choice((content, content["model"], content["model"]["init_args"]["backbone"], content["data"]))
    set_somewhere(rng, part)
    file.write_text(yaml.safe_dump(content))
    return Damage("config.yaml: a value", "any")


def _checkpoint(rng: random.Random, run: Path) -> Damage:
    file = run / "checkpoints" / "last.ckpt"
    if rng.random() < 0.6:
        name = rng.choice(list(BYTES))
        file.write_bytes(BYTES[name](rng, file.read_bytes()))
        return Damage(f"last.ckpt: {name}", "same")
    saved = torch.load(file, weights_only=True)
    name, change = rng.choice(
        [
            *((f"no {key}", _without(key)) for key in ("state_dict", "loops", "callbacks", "epoch", "global_step")),
            ("nothing in it", lambda saved: {}),
            ("a list", lambda saved: [1]),
            ("weights that are a number", _with(state_dict=5)),
            (
                "NaN",
                lambda saved: {**saved, "state_dict": {k: v * float("nan") for k, v in saved["state_dict"].items()}},
            ),
        ]
    )
    torch.save(change(saved), file)
    return Damage(f"last.ckpt: {name}", "same")


# Models.


def damage_model(number: int, folder: Path) -> Damage:
    """Damage a copy of a reward model as `export` writes it.

    Args:
        number: which damage.
        folder: the copy.
    """
    rng = random.Random(f"model {number}")
    ways = (_json_of_model, _template, _weights, _scale, _bytes_of_model, _size)
    return ways[number % len(ways)](rng, folder)


def _json_of_model(rng: random.Random, folder: Path) -> Damage:
    file = rng.choice(sorted(folder.glob("*config.json")))
    content = json.loads(file.read_text())
    place = set_somewhere(rng, content)
    file.write_text(json.dumps(content))
    return Damage(f"{file.name}: {place.split('.')[0]}", "any")


def _size(rng: random.Random, folder: Path) -> Damage:
    file = folder / "config.json"
    content = json.loads(file.read_text())
    name = rng.choice(
        (
            "num_attention_heads",
            "num_key_value_heads",
            "hidden_size",
            "num_hidden_layers",
            "vocab_size",
            "intermediate_size",
        )
    )
    content[name] = rng.choice((0, -1, "many", 7, None, 1.5, [2]))
    file.write_text(json.dumps(content))
    return Damage(f"config.json: {name}", "any")


TEMPLATES = {
    "divides by zero": "{{ 1 / 0 }}",
    "raises": "{{ raise_exception('no') }}",
    "is cut": "{% for m in messages %}{{ m['content'] ",
    "includes a file": "{% include '/etc/passwd' %}",
    "asks for the classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "calls what is not there": "{{ nothing() }}",
    "adds text and numbers": "{{ 'x' + 1 }}",
    "is empty": " ",
    "sees no content": "{% for m in messages %}turn{% endfor %}",
    "is a number": 5,
}


def _template(rng: random.Random, folder: Path) -> Damage:
    name, template = rng.choice(list(TEMPLATES.items()))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return Damage(f"template: {name}", "any" if name in ("sees no content", "is empty", "is a number") else "refused")


def _weights(rng: random.Random, folder: Path) -> Damage:
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = rng.choice(sorted(weights))
    way = rng.choice(("NaN", "infinity", "a tensor less", "another shape"))
    if way == "a tensor less":
        weights.pop(name)
    elif way == "another shape":
        weights[name] = torch.zeros(3, 5)
    else:
        # Of every row: of the embeddings only what is in use is read.
        weights[name] = torch.full_like(weights[name], float("nan") if way == "NaN" else float("inf"))
    save_file(weights, file, metadata={"format": "pt"})
    return Damage(f"model.safetensors: {way}", "refused")


def _scale(rng: random.Random, folder: Path) -> Damage:
    file = folder / "config.json"
    content = json.loads(file.read_text())
    key, value = rng.choice(
        [
            *(("reward_temperature", v) for v in (0, 0.0, -1, float("nan"), float("inf"), "1", None, [1])),
            *(("reward_zero", v) for v in (float("nan"), float("inf"), "x", [0])),
        ]
    )
    content[key] = value
    file.write_text(json.dumps(content))
    return Damage(f"config.json: {key} {value!r}", "refused")


def _bytes_of_model(rng: random.Random, folder: Path) -> Damage:
    file = rng.choice([path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors")])
    name = rng.choice([*BYTES, "gone"])
    if name == "gone":
        file.unlink()
    else:
        file.write_bytes(BYTES[name](rng, file.read_bytes()))
    is_sure = file.name == "model.safetensors" and name in ("cut", "empty", "binary", "gone", "longer")
    return Damage(f"{file.name}: {name}", "refused" if is_sure else "any")


# Files of rewards and gates, which `compare` reads.


def damage_rewards(number: int, file: Path) -> Damage:
    """Damage a file of rewards that `score` wrote as JSON lines."""
    rng = random.Random(f"rewards {number}")
    if number % 2:
        name = rng.choice(list(BYTES))
        file.write_bytes(BYTES[name](rng, file.read_bytes()))
        return Damage(f"rewards: {name}", "any")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    place = set_somewhere(rng, rng.choice(rows))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Damage(f"rewards: {place}", "any")


def strange_gate(number: int) -> tuple[str, bytes]:
    """What stands in a file of thresholds."""
    rng = random.Random(f"gate {number}")
    found = {
        "binary": rng.randbytes(80),
        "a tag of YAML": b"accuracy_b: !!python/object/apply:os.getcwd []\n",
        "a list": b"- 1\n",
        "text for a number": b"accuracy_b: {min: high}\n",
        "NaN": b"accuracy_b: {min: .nan}\n",
        "a figure that is none": b"acuracy_b: {min: 0.5}\n",
        "nothing": b"",
        "cut": b"accuracy_b: {min: 0.5",
        "dates": b"2020-01-01: {min: 2020-01-01}\n",
        "deep": b"[" * 3000,
    }
    return rng.choice(list(found.items()))
