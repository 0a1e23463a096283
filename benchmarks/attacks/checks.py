"""One case of each kind: made, given to the commands, and judged."""

import functools
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.attacks.damage import Damage
from benchmarks.attacks.damaged_models import damage_model
from benchmarks.attacks.damaged_rewards import damage_rewards, strange_gate
from benchmarks.attacks.damaged_runs import damage_run
from benchmarks.attacks.data_files import DataFile, clear, data_file
from benchmarks.attacks.rows import Row
from benchmarks.attacks.scene import Ended, fit_words, results_of, run_command
from ser_lightning.data.reader import PairStore
from ser_lightning.data.sources import open_sources
from ser_lightning.data.store import build_store
from ser_lightning.errors import UserError


@dataclass(frozen=True)
class Judged:
    """What became of one case."""

    kind: str
    outcome: str
    """`read` or `refused` for a data file; for a folder `same`, `refused` or `other`."""
    faults: tuple[str, ...] = ()
    """What must not be: a traceback, a silent wrong reading, a refusal of what is good."""


# Data files.


def check_data_file(number: int, scene: Path, scratch: Path) -> Judged:
    """Read a data file by `score`, as training reads it, and by one more command in turn."""
    made = data_file(number, clear(scratch))
    out = scratch / "out.jsonl"
    words = ["score", f"--model={scene / 'export'}", f"--data={made.path}", f"--out={out}", "--max_length=512"]
    ended = run_command(*words)
    faults = (
        [ended.fault] if ended.fault else [*_misread_scores(made, ended, out), *_misread_store(made, scene, scratch)]
    )
    more = _more_commands(number, made.path, scene, scratch)
    faults += [f"{words[0]}: {fault}" for words in more if (fault := run_command(*words).fault)]
    return Judged(made.kind, "refused" if ended.code else "read", tuple(faults))


def _misread_scores(made: DataFile, ended: Ended, out: Path) -> list[str]:
    """What is wrong with what `score` read."""
    if ended.code:
        return [f"refused: {ended.said}"] if made.reading == "whole" else []
    if made.reading == "refused":
        return ["silent: read what is to be refused"]
    found = [json.loads(line)["content"] for line in out.read_text().splitlines()]
    right = [row.content for row in made.rows]
    if made.reading == "whole" and found != right:
        return [f"silent: other texts in {sum(a != b for a, b in zip(found, right, strict=False))} rows"]
    lost = [content for content in right if content not in found]
    return [f"silent: {len(lost)} untouched rows are lost"] if lost else []


def _misread_store(made: DataFile, scene: Path, scratch: Path) -> list[str]:
    """What is wrong with what training reads."""
    tokenizer = AutoTokenizer.from_pretrained(scene / "base")
    try:
        sources = {"path": open_sources([str(made.path)], 0, 0), "pool_path": [], "test_path": []}
        build_store(scratch / "store", sources, {}, tokenizer, 512)
    except UserError as error:
        if any("\n" in problem for problem in error.problems):
            return ["store: a problem of several lines"]
        return [f"store refused: {error.problems[0]}"] if made.reading == "whole" else []
    store = PairStore(scratch / "store")
    pairs, labels = store.read_texts(range(len(store))), store.read_labels().tolist()
    found = {
        _key(Row(list(map(dict, p.prompt)), p.response_a, p.response_b, label))
        for p, label in zip(pairs, labels, strict=True)
    }
    right = {_key(row) for row in made.rows}
    if made.reading == "refused":
        return ["store silent: read what is to be refused"] if found else []
    if made.reading == "whole" and found != right:
        return [f"store silent: {len(found ^ right)} pairs differ"]
    return [] if right <= found else ["store silent: untouched rows are lost"]


def _key(row: Row) -> tuple[str, tuple[str, ...], str | None]:
    """A pair whatever the order of its responses: prompt, both texts, the better one."""
    better = {1: row.first, 0: row.second}.get(-1 if row.label is None else row.label)
    return json.dumps(row.prompt), tuple(sorted((row.first, row.second))), better


def _more_commands(number: int, path: Path, scene: Path, scratch: Path) -> list[list[str]]:
    model, data = str(scene / "export"), f"--data={path}"
    if number % 40 == 13:
        run = scratch / "fit"
        return [
            [*fit_words(scene, run), f"--data.path={path}", "--trainer.fast_dev_run=1", f"--data.cache_dir={scratch}"]
        ]
    if number % 40 == 27:
        return [["plan", "--config", "rm.yaml", f"--model.backbone.path={scene / 'base'}", f"--data.path={path}"]]
    turns: list[list[list[str]]] = [
        [["compare", model, str(scene / "rewards.jsonl"), data]],
        [["bench", f"--model={model}", data]],
        [],
        [["compare", model, model, data, "--sequential"]],
        [],
    ]
    return turns[number % len(turns)]


# Runs and models.

Produced = dict[str, Any]


def check_run(number: int, scene: Path, scratch: Path) -> Judged:
    """Damage a copy of a sound run, and give it to three commands or, for a checkpoint, to those that read it."""
    folder = clear(scratch)
    source = "half" if number % 18 == 8 else "run"  # the run that can go on has a checkpoint to be damaged
    shutil.copytree(scene / source, folder / "run")
    damage = damage_run(number, folder / "run")
    names = ("report", "query", ("score", "export", "compare", "bench")[number % 4])
    if damage.kind.startswith("last.ckpt"):
        names = ("resume",) if source == "half" else ("test", "export checkpoint")
    return _judge(damage, names, scene, folder, source)


def check_model(number: int, scene: Path, scratch: Path) -> Judged:
    """Damage a copy of an export and score with it, or of a base and train on it."""
    folder = clear(scratch)
    name = "base" if number % 8 == 7 else "export"
    shutil.copytree(scene / name, folder / name)
    damage = damage_model(number, folder / name)
    if name == "base":
        kind = damage.kind
        if "reward_" in kind or "NaN" in kind or "infinity" in kind or "template" in kind:
            damage = Damage(kind, "any")  # a base has no scale, and trains or not
        return _judge(Damage(f"base, {damage.kind}", "any"), ("fit",), scene, folder, "run")
    return _judge(damage, ("score export", ("bench export", "compare export")[number % 2]), scene, folder, "run")


def check_rewards(number: int, scene: Path, scratch: Path) -> Judged:
    """Damage a file of rewards or a gate, and give it to `compare`."""
    folder = clear(scratch)
    file = folder / "rewards.jsonl"
    shutil.copy(scene / "rewards.jsonl", file)
    words = ["compare", str(scene / "export"), str(file), f"--data={scene / 'pairs.jsonl'}"]
    if number % 3 == 0:
        kind, content = strange_gate(number)
        (folder / "gate.yaml").write_bytes(content)
        ended = run_command(*words, f"--gate={folder / 'gate.yaml'}")
        faults = [ended.fault] if ended.fault else [] if ended.code == 2 else ["silent: a gate that is none"]
        return Judged(f"gate: {kind}", "refused" if ended.code else "other", tuple(faults))
    damage = damage_rewards(number, file)
    ended = run_command(*words, *(["--sequential"] if number % 3 == 1 else []))
    return Judged(damage.kind, "refused" if ended.code else "other", (ended.fault,) if ended.fault else ())


def _judge(damage: Damage, names: tuple[str, ...], scene: Path, folder: Path, source: str) -> Judged:
    faults, outcomes = [], []
    for name in names:
        ended, produced = produce(name, scene, folder)
        if ended.fault:
            faults.append(f"{name}: {ended.fault}")
        elif ended.code == 0 and damage.right != "any":
            is_same = produced == reference(name, scene, source)
            outcomes.append("same" if is_same else "other")
            if damage.right == "refused" and name != "query" and not (name == "report" and "identity" in damage.kind):
                faults.append(f"{name}: silent: took what is to be refused")
            elif not is_same and damage.right == "same":
                faults.append(f"{name}: silent: gave something else")
        else:
            outcomes.append("refused" if ended.code else "other")
    outcome = "refused" if "refused" in outcomes else "other" if "other" in outcomes else "same"
    return Judged(damage.kind, outcome, tuple(faults))


@functools.cache
def reference(name: str, scene: Path, source: str) -> Produced:
    """What a command gives for the sound folders."""
    folder = clear(scene / "sound")
    for one in ("base", "export"):
        shutil.copytree(scene / one, folder / one)
    shutil.copytree(scene / source, folder / "run")
    ended, produced = produce(name, scene, folder)
    if ended.code or ended.fault:
        raise RuntimeError(f"{name} fails on a sound folder: {ended}")
    return produced


def produce(name: str, scene: Path, folder: Path) -> tuple[Ended, Produced]:
    """Run a command on `run`, `export` or `base` in a folder, and read what it wrote."""
    run, data = folder / "run", f"--data={scene / 'pairs.jsonl'}"
    out = folder / "out"
    model = str(folder / "export") if name.endswith(" export") else str(run)
    sound = str(scene / "export")
    checkpoint = run / "checkpoints" / "last.ckpt"
    words: dict[str, list[str]] = {
        "report": ["report", str(run), f"--to={out}.html", "--overwrite"],
        "query": ["query", f"--run={run}", "--n=3", f"--to={out}-query.jsonl"],
        "score": ["score", f"--model={model}", data, f"--out={out}.jsonl", "--overwrite"],
        "export": ["export", str(run), f"--to={out}"],
        "export checkpoint": ["export", f"--ckpt_path={checkpoint}", f"--to={out}"],
        "compare": ["compare", model, sound, data, f"--json={out}.json", "--overwrite"],
        "bench": ["bench", f"--model={model}", data, f"--json={out}.json", "--overwrite"],
        "test": ["test", f"--ckpt_path={checkpoint}", f"--run_dir={out}-test", "--trainer.enable_progress_bar=false"],
        "resume": ["fit", f"--run_dir={run}", "--ckpt_path=last", "--trainer.max_epochs=-1"],
        "fit": [*fit_words(scene, out), f"--model.backbone.path={folder / 'base'}", "--trainer.fast_dev_run=1"],
    }
    ended = run_command(*words[name.removesuffix(" export")])
    return ended, {} if ended.code or ended.fault else _READ.get(name.split()[0], _read_nothing)(out, run)


def _read_file(suffix: str) -> Callable[[Path, Path], Produced]:
    return lambda out, run: {"content": Path(f"{out}{suffix}").read_text()}


def _read_report(out: Path, run: Path) -> Produced:
    return {"content": Path(f"{out}.html").read_text()}


def _read_export(out: Path, run: Path) -> Produced:
    config = json.loads((out / "config.json").read_text())
    return {
        "weights": (out / "model.safetensors").read_bytes(),
        "scale": [config["reward_zero"], config["reward_temperature"]],
    }


def _read_test(out: Path, run: Path) -> Produced:
    return {"content": Path(f"{out}-test", "metrics-test.csv").read_text()}


def _read_resumed(out: Path, run: Path) -> Produced:
    return results_of(run)


def _read_nothing(out: Path, run: Path) -> Produced:
    return {}


_READ: dict[str, Callable[[Path, Path], Produced]] = {
    "report": _read_report,
    "query": _read_file("-query.jsonl"),
    "score": _read_file(".jsonl"),
    "compare": _read_file(".json"),
    "bench": _read_file(".json"),
    "export": _read_export,
    "test": _read_test,
    "resume": _read_resumed,
}
CHECKS: dict[str, Callable[[int, Path, Path], Judged]] = {
    "data": check_data_file,
    "run": check_run,
    "model": check_model,
    "rewards": check_rewards,
}


def seeded(part: str, number: int) -> random.Random:
    """Random numbers of a case."""
    return random.Random(f"{part} {number}")
