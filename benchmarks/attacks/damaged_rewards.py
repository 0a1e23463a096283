"""Files of rewards and of thresholds, which `compare` reads, as they break: each from a number."""

import json
import random
from pathlib import Path

from benchmarks.attacks.damage import BYTES, Damage, set_somewhere


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
