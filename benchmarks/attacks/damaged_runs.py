"""Runs as they break, and as somebody may send them: each from a number, with what is right to happen."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.attacks.damage import BYTES, Damage, set_somewhere
from ser_lightning.utils.checksums import CHECKSUMS


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
