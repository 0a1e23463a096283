"""Reward models as `export` writes them and as they break: each from a number, with what is right to happen."""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.attacks.damage import BYTES, Damage, set_somewhere


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
