"""Pairs a second in labelling and training on one GPU: ours, packed and padded, against a pipeline and TRL's trainer.

One process, one random model whose weights all ways share (but for the smallest, which is trained in full), the same
pairs, bfloat16, the same attention kernel for all padded rows. Each way first looks for its fastest setting, then all
take turns; medians. The others get the same token ids (the pipeline the same text) and as many pairs an optimiser step.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.job import Job
from benchmarks.gpu.shapes import layer_weights, random_weights, shape_of, write_folder
from benchmarks.gpu.waits import counted_waits, summary
from benchmarks.gpu.ways import (
    PAIRS_PER_STEP,
    Pairs,
    Way,
    label_ours,
    label_pipeline,
    matmul_rate,
    our_module,
    train_ours,
    train_trl,
)
from benchmarks.speed.lengths import PROFILES, lengths_of, make_pairs


@dataclass(frozen=True)
class Settings:
    """What is tried.

    Attributes:
        train_budgets: tokens in a micro-batch of ours.
        train_batches: pairs in a micro-batch of TRL.
        label_budgets: tokens in a batch of ours.
        label_batches: conversations in a batch of the pipeline.
        seconds: about as long takes a measurement of ours.
        repetitions: turns of what is compared.
    """

    train_budgets: tuple[int, ...] = (16384, 32768)
    train_batches: tuple[int, ...] = (8, 16, 32)
    label_budgets: tuple[int, ...] = (16384, 65536)
    label_batches: tuple[int, ...] = (64, 256, 1024)
    seconds: float = 0.8
    repetitions: int = 3


SETTINGS = {
    "135m": Settings(),
    "0.5b": Settings(),
    "1.5b": Settings(train_budgets=(4096, 8192, 16384), train_batches=(4, 8, 16)),
    "8b": Settings((4096, 8192), (4, 8), (16384, 32768), (16, 64), seconds=0.4, repetitions=2),
}
TINY = Settings((256,), (2,), (512,), (4,), seconds=0.02, repetitions=1)


def fastest(way: Way, settings: tuple[Any, ...], pairs: Pairs) -> tuple[Any, dict[str, Any]]:
    """The setting with which a way is fastest, and what each of them gave."""
    if len(settings) == 1:
        return settings[0], {}
    tried = {setting: way.measure(pairs, setting) for setting in settings}
    return max(tried, key=lambda s: tried[s]["pairs_per_second"]), {str(k): v for k, v in tried.items()}


def measure_within(way: Way, pairs: Pairs, settings: list[Any]) -> tuple[Any, dict[str, Any]]:
    """A measurement in the largest setting for which the card is large enough, and which that is."""
    for setting in sorted(settings, reverse=True):
        result = way.measure(pairs, setting)
        if "error" not in result:
            break
    return setting, result


def compare(
    ways: Mapping[str, tuple[Way, tuple[Any, ...]]],
    pairs: Pairs,
    repetitions: int,
    best: dict[str, Any],
    note: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Every way in its best setting, in turns.

    Args:
        ways: by name, with the settings to choose from.
        pairs: of a measurement.
        repetitions: turns.
        best: settings that were found before, by name; what is missing is looked for and added.
        note: gets what was found so far, after each turn.
    """
    found: dict[str, Any] = {}
    for name, (way, settings) in ways.items():
        way.measure(pairs[: max(2, len(pairs) // 8)], settings[0])  # compiles, allocates, chooses kernels
        tried: dict[str, Any] = {}
        if name not in best:
            best[name], tried = fastest(way, settings, pairs[: max(2, len(pairs) // 2)])
        found[name] = {"setting": best[name], "tried": tried}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, (way, settings) in ways.items():
            best[name], result = measure_within(way, pairs, [s for s in settings if s <= best[name]])
            found[name]["setting"] = best[name]
            runs[name].append(result)
        for name, results in runs.items():
            rates = [result["pairs_per_second"] for result in results]
            found[name] |= {**results[-1], "pairs_per_second": statistics.median(rates), "runs": rates}
        note(found)
    return found


def ratio(found: dict[str, Any], others: tuple[str, ...]) -> float:
    """The faster of ours, packed, over the fastest of the others."""
    fastest_rate = max(found[name]["pairs_per_second"] for name in others if name in found)
    own = max(found[name]["pairs_per_second"] for name in ("packed", "packed, Liger") if name in found)
    return own / fastest_rate if fastest_rate else float("inf")


Tasks = dict[str, dict[str, tuple[Way, tuple[Any, ...]]]]


def ways_of(folder: Path, train: str, settings: Settings, job: Job) -> tuple[Tasks, dict[str, tuple[Way, Any]]]:
    """Every way of either task with the settings to choose from, and the others at their defaults."""
    has_flash = find_spec("flash_attn") is not None and not job.is_tiny
    packed, padded = (our_module(folder, train, layout, job) for layout in ("shared_prompt", "padded"))
    plain = our_module(folder, "head", "shared_prompt", job)
    pipe, trl = label_pipeline(folder, job), train_trl(folder, train, job)
    tasks: Tasks = {
        "label": {
            "packed": (label_ours(plain, job), settings.label_budgets),
            "packed, adapters": (label_ours(packed, job), settings.label_budgets[-1:]),
            "padded, adapters": (label_ours(padded, job), settings.label_budgets[-1:]),
            "pipeline": (pipe, settings.label_batches),
        },
        "train": {
            "packed": (train_ours(packed, job), settings.train_budgets),
            "padded": (train_ours(padded, job), settings.train_budgets),
            "trl": (trl, settings.train_batches),
        },
    }
    defaults: dict[str, tuple[Way, Any]] = {"label": (pipe, 1), "train": (trl, None)}
    if has_flash:
        flash = "flash_attention_2"
        tasks["label"]["pipeline, flash"] = (label_pipeline(folder, job, flash), settings.label_batches)
        tasks["train"]["trl, flash"] = (train_trl(folder, train, job, flash), settings.train_batches)
    if find_spec("liger_kernel") is not None and not job.is_tiny:
        add_liger(tasks, folder, train, settings, job)
    return tasks, defaults


def run(job: Job, name: str) -> None:
    """Both tasks at the lengths of both data sets, the more telling first."""
    settings = TINY if job.is_tiny else SETTINGS[name]
    train = "full" if name == "135m" else "lora"
    folder = write_folder(job.scratch / f"shape-{name}{'-tiny' if job.is_tiny else ''}", name, job.is_tiny)
    rate = matmul_rate(shape_of(name, job.is_tiny), job.device, 64 if job.is_tiny else 8192)
    weights = layer_weights(name, job.is_tiny)
    job.record(shape=name, trained=train, layer_weights=weights, matmul_rate=rate)
    with random_weights(job.device, share=train != "full"):
        tasks, defaults = ways_of(folder, train, settings, job)
        best: dict[str, dict[str, Any]] = {"label": {}, "train": {}}
        results: dict[str, Any] = {}
        for profile, lengths in [*PROFILES.items()][: 1 if job.is_tiny else None]:
            results[profile] = {}
            for task, ways in tasks.items():
                pairs = enough_pairs(ways["packed"], lengths, settings.seconds, job)

                def note(found: dict[str, Any], task: str = task, pairs: Pairs = pairs, profile: str = profile) -> None:
                    results[profile][task] = {"pairs": len(pairs), "ways": found}
                    job.record(profiles=results, headline=headline(results, weights, rate))

                found = compare(ways, pairs, settings.repetitions, best[task], note)
                count_waits(found, ways, best[task], pairs)
                way, setting = defaults[task]  # slow, so on fewer pairs
                few = pairs[:: max(1, len(pairs) // (4 if job.is_tiny else 16 if task == "label" else 64))]
                other = "pipeline" if task == "label" else "trl"
                found[f"{other}, defaults"] = {"setting": setting, "pairs": len(few), **way.measure(few, setting)}
                note(found)


def count_waits(
    found: dict[str, Any], ways: Mapping[str, tuple[Way, tuple[Any, ...]]], best: dict[str, Any], pairs: Pairs
) -> None:
    """How often ours waits for the card in a step of training, or while it labels as many pairs."""
    for name in ("packed", "padded"):
        if name in ways:
            few = pairs[: 4 * PAIRS_PER_STEP]
            with counted_waits() as waits:
                ways[name][0].measure(few, best[name])
            found[name]["waits"] = summary(waits, -(-len(few) // PAIRS_PER_STEP))


def add_liger(tasks: Tasks, folder: Path, train: str, settings: Settings, job: Job) -> None:
    """The same ways with Liger's kernels. Last, since Liger also replaces the classes that later models are made of."""
    head, trained = (our_module(folder, what, "shared_prompt", job, True) for what in ("head", train))
    tasks["label"] |= {
        "packed, Liger": (label_ours(head, job), settings.label_budgets[-1:]),
        "pipeline, Liger": (label_pipeline(folder, job, has_liger=True), settings.label_batches[-1:]),
    }
    tasks["train"] |= {
        "packed, Liger": (train_ours(trained, job), settings.train_budgets[-1:]),
        "trl, Liger": (train_trl(folder, train, job, has_liger=True), settings.train_batches[-1:]),
    }


def enough_pairs(way: tuple[Way, tuple[Any, ...]], lengths: Any, seconds: float, job: Job) -> Pairs:
    """As many pairs as ours takes about so many seconds for, in whole steps."""
    least = 4 if job.is_tiny else PAIRS_PER_STEP
    pairs = make_pairs(lengths_of(lengths, least, seed=1), seed=1)
    way[0].measure(pairs, way[1][0])
    pairs_per_second = way[0].measure(pairs, way[1][0])["pairs_per_second"]
    number = 8 if job.is_tiny else least * max(2, round(pairs_per_second * seconds / least))
    return make_pairs(lengths_of(lengths, number, seed=0), seed=0)


def headline(results: dict[str, Any], weights: int, rate: float) -> str:
    """Ratios to the best of the others, and the share of the matrix-product rate."""
    parts = []
    for profile, tasks in results.items():
        for task, others in (
            ("label", ("pipeline", "pipeline, flash", "pipeline, Liger")),
            ("train", ("trl", "trl, flash", "trl, Liger")),
        ):
            if task in tasks:
                parts.append(f"{profile} {task} {ratio(tasks[task]['ways'], others):.2f} times")
    labelled = results["hh"]["label"]["ways"]["packed"]
    share = 2 * weights * labelled["pairs_per_second"] * labelled.get("tokens_per_pair", 0) / rate
    return f"{', '.join(parts)} the best of others; {share:.2f} of the matrix-product rate"
