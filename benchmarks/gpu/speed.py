"""Pairs a second in labelling and training on one GPU: ours, packed and padded, against a pipeline and TRL's trainer.

One process, one random model whose weights all ways share (but for the smallest, which is trained in full), the same
pairs, bfloat16, the same attention kernel for all padded rows. Each way first looks for its fastest setting, then all
take turns; medians. The others get the same token ids (the pipeline the same text) and as many pairs an optimiser step.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback, pipeline

from benchmarks.gpu.job import Job
from benchmarks.gpu.shapes import layer_weights, random_weights, shape_of, write_folder
from benchmarks.speed.lengths import PROFILES, lengths_of, make_pairs, text_of
from benchmarks.speed.work import Counter, Store
from ser_lightning.datamodules.batches import PairSet, ScoringBatches, Shard, TrainingSteps, make_loader
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.models.loading import unwrapped
from ser_lightning.modules.reward import RewardModule
from ser_lightning.training.scoring import evaluating

Pairs = list[tuple[list[int], list[int]]]
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
LEARNING_RATE = 1e-5
PAIRS_PER_STEP = 64
LORA = {"r": 16, "alpha": 32, "dropout": 0.0}


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

    train_budgets: tuple[int, ...] = (8192, 16384, 32768)
    train_batches: tuple[int, ...] = (8, 16, 32)
    label_budgets: tuple[int, ...] = (16384, 65536)
    label_batches: tuple[int, ...] = (64, 256, 1024)
    seconds: float = 0.8
    repetitions: int = 3


SETTINGS = {
    "135m": Settings(),
    "0.5b": Settings(),
    "1.5b": Settings(train_budgets=(4096, 8192, 16384), train_batches=(4, 8, 16)),
    "8b": Settings((4096, 8192), (4, 16), (16384, 32768), (64, 256), repetitions=2),
}
TINY = Settings((256,), (2,), (512,), (4,), seconds=0.02, repetitions=1)


class Clock:
    """Seconds of training alone, as either trainer tells."""

    def __init__(self, counter: Counter) -> None:
        self.counter, self.start, self.seconds = counter, 0.0, 0.0

    def begin(self) -> None:
        """Training starts now."""
        synchronize()
        self.counter.tokens, self.start = 0, time.perf_counter()

    def end(self) -> None:
        """Training is over."""
        synchronize()
        self.seconds = time.perf_counter() - self.start

    def for_lightning(self) -> Callback:
        """A callback of Lightning's trainer that tells this clock."""
        return LambdaCallback(on_train_start=lambda *_: self.begin(), on_train_end=lambda *_: self.end())

    def for_transformers(self) -> TrainerCallback:
        """The same for transformers' trainer."""
        clock = self

        class Tell(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                clock.begin()

            def on_train_end(self, *_: Any, **__: Any) -> None:
                clock.end()

        return Tell()


def synchronize() -> None:
    """Wait for the card; the host runs ahead of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Way:
    """One way to do a task.

    Args:
        body: whose tokens are counted.
        work: does the task over some pairs in one setting; gives the seconds of it.
    """

    def __init__(self, body: torch.nn.Module, work: Callable[[Pairs, Any, Counter], float]) -> None:
        self.counter, self.work = Counter(), work
        self.counter.watch(body)

    def measure(self, pairs: Pairs, setting: Any) -> dict[str, Any]:
        """One measurement; a setting for which the card is too small is one without a rate."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.counter.tokens = 0
        try:
            seconds = self.work(pairs, setting, self.counter)
        except torch.OutOfMemoryError:
            return {"pairs_per_second": 0.0, "error": "out of memory"}
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        return {
            "pairs_per_second": len(pairs) / seconds,
            "tokens_per_pair": self.counter.tokens / len(pairs),
            "peak_bytes": peak,
        }


# Ours.


def our_module(folder: Path, train: str, layout: str, job: Job, has_liger: bool = False) -> RewardModule:
    """Our module with its weights on the device, as a fit leaves it there; with Liger's kernels for norms and MLPs."""
    is_full = train == "full"
    backbone = Backbone(
        str(folder),
        train=train,
        lora=LoraSettings(**LORA),
        dtype="float32" if is_full else "bfloat16",  # type: ignore[arg-type]
    )
    module = RewardModule(
        backbone,
        optimizer=lambda p: torch.optim.AdamW(p, lr=LEARNING_RATE, weight_decay=0.0, fused=True),
        lr_decay="none",
        warmup_share=0.0,
        center_rewards_coefficient=0.0,
        layout=layout,  # type: ignore[arg-type]
    )
    module.trainer = _trainer(job)
    module.configure_model()
    module.to(job.device)
    if has_liger:
        use_liger(unwrapped(module.reward_model.body))
    # Lightning moves a module to the CPU behind a fit: 16 GB each time, and an end to what is shared.
    module.cpu = lambda: module  # type: ignore[method-assign]
    return module


def use_liger(model: Any) -> None:
    """Liger's kernels in one model alone; its rotation of queries and keys would change every model of the kind."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model, rope=False, cross_entropy=False, fused_linear_cross_entropy=False)


def _trainer(job: Job, *callbacks: Callback) -> Trainer:
    return Trainer(
        accelerator=job.accelerator, devices=1, precision="bf16-mixed", max_epochs=1, callbacks=[*callbacks], **QUIET
    )


def label_ours(module: RewardModule, job: Job) -> Way:
    """Every pair once, as the evolution scores its pool."""

    def work(pairs: Pairs, budget: int, counter: Counter) -> float:
        shard = Shard(0, 1, budget, 0, module.layout)
        batches = ScoringBatches(Store(pairs), PairSet.unlabelled(np.arange(len(pairs))), shard)
        synchronize()
        start = time.perf_counter()
        with evaluating(module), torch.autocast(job.device, torch.bfloat16):
            found = [module.predict_step(batch.to(job.device)).reward_a for batch in make_loader(batches, 0)]
        assert torch.cat(found).isfinite().all()  # also waits for the card
        return time.perf_counter() - start

    return Way(module.reward_model.body, work)


def train_ours(module: RewardModule, job: Job) -> Way:
    """One epoch through the Trainer."""

    def work(pairs: Pairs, budget: int, counter: Counter) -> float:
        clock = Clock(counter)
        chosen = PairSet.labelled(np.arange(len(pairs)), np.ones(len(pairs)))
        order = np.random.default_rng(0).permutation(len(pairs))
        steps = TrainingSteps(Store(pairs), chosen, order, PAIRS_PER_STEP, Shard(0, 1, budget, 0, module.layout))
        _trainer(job, clock.for_lightning()).fit(module, make_loader(steps, 0))
        return clock.seconds

    return Way(module.reward_model.body, work)


# Others.


def label_pipeline(folder: Path, job: Job, attention: str = "sdpa", has_liger: bool = False) -> Way:
    """A transformers pipeline over the texts of all conversations, tokenisation included."""
    model = _classifier(folder, torch.bfloat16, attention)
    if has_liger:
        use_liger(model.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device=job.device)

    def work(pairs: Pairs, batch: int, counter: Counter) -> float:
        sequences = [ids for pair in pairs for ids in pair]
        sequences.sort(key=len, reverse=True)
        texts = [text_of(ids) for ids in sequences]
        synchronize()
        start = time.perf_counter()
        found = classify(texts, batch_size=batch, function_to_apply="none")
        assert len(found) == 2 * len(pairs)
        return time.perf_counter() - start

    return Way(model.model, work)


def train_trl(folder: Path, train: str, job: Job, attention: str = "sdpa", has_liger: bool = False) -> Way:
    """`RewardTrainer` over the same ids. A setting is a batch size, or None for its own defaults."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import RewardConfig, RewardTrainer

    class Grouping(RewardTrainer):
        """Keeps the column of lengths, without which TRL 1.16 cannot group pairs by length."""

        def _set_signature_columns_if_needed(self) -> None:
            super()._set_signature_columns_if_needed()
            self._signature_columns = [*self._signature_columns, "length"]

    dtype = torch.float32 if train == "full" else torch.bfloat16
    model = _classifier(folder, dtype, attention)
    body = model.model
    if has_liger:
        use_liger(body)
    if train != "full":
        adapters = LoraConfig(
            task_type="SEQ_CLS", r=LORA["r"], lora_alpha=LORA["alpha"], lora_dropout=0.0, target_modules="all-linear"
        )
        model = get_peft_model(model, adapters)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    common = {"output_dir": str(job.scratch / "trl"), "max_length": None, "learning_rate": LEARNING_RATE}
    common |= {"num_train_epochs": 1, "report_to": "none", "save_strategy": "no", "logging_steps": 10_000}
    common |= {"disable_tqdm": True, "use_cpu": job.is_tiny}

    def work(pairs: Pairs, batch: int | None, counter: Counter) -> float:
        columns = {"chosen_ids": [a for a, _ in pairs], "rejected_ids": [b for _, b in pairs]}
        columns["length"] = [max(len(a), len(b)) for a, b in pairs]  # type: ignore[misc]
        chosen: dict[str, Any] = {}
        if batch is not None:
            chosen = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": PAIRS_PER_STEP // batch}
            chosen |= {"train_sampling_strategy": "group_by_length", "gradient_checkpointing": False}
        clock = Clock(counter)
        config = RewardConfig(**common, **chosen)
        dataset, tell = Dataset.from_dict(columns), clock.for_transformers()
        trainer = Grouping(model, config, train_dataset=dataset, processing_class=tokenizer, callbacks=[tell])
        try:
            trainer.train()
        finally:
            model.gradient_checkpointing_disable()
        return clock.seconds

    return Way(body, work)


def _classifier(folder: Path, dtype: torch.dtype, attention: str) -> Any:
    config = AutoConfig.from_pretrained(folder, num_labels=1)
    return AutoModelForSequenceClassification.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation=attention
    )


# The comparison.


def fastest(way: Way, settings: tuple[Any, ...], pairs: Pairs) -> tuple[Any, dict[str, Any]]:
    """The setting with which a way is fastest, and what each of them gave."""
    if len(settings) == 1:
        return settings[0], {}
    tried = {setting: way.measure(pairs, setting) for setting in settings}
    return max(tried, key=lambda s: tried[s]["pairs_per_second"]), {str(k): v for k, v in tried.items()}


def compare(
    ways: Mapping[str, tuple[Way, tuple[Any, ...]]], pairs: Pairs, repetitions: int, best: dict[str, Any]
) -> dict[str, Any]:
    """Every way in its best setting, in turns.

    Args:
        ways: by name, with the settings to choose from.
        pairs: of a measurement.
        repetitions: turns.
        best: settings that were found before, by name; what is missing is looked for and added.
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
        for name, (way, _) in ways.items():
            runs[name].append(way.measure(pairs, best[name]))
    for name, results in runs.items():
        rates = [result["pairs_per_second"] for result in results]
        found[name] |= {**results[-1], "pairs_per_second": statistics.median(rates), "runs": rates}
    return found


def matmul_rate(shape: dict[str, Any], device: str, num_tokens: int) -> float:
    """Floating-point operations a second of bfloat16 matrix products of the model's own shapes."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    work = 0
    seconds = 0.0
    for rows, columns in ((hidden, hidden), (hidden, inner), (inner, hidden)):
        x = torch.randn(num_tokens, rows, device=device, dtype=torch.bfloat16)
        weight = torch.randn(columns, rows, device=device, dtype=torch.bfloat16)
        times = []
        for _ in range(13):
            synchronize()
            start = time.perf_counter()
            for _ in range(4):  # several at once, so that a launch does not count
                torch.nn.functional.linear(x, weight)
            synchronize()
            times.append((time.perf_counter() - start) / 4)
        work += 2 * num_tokens * rows * columns
        seconds += statistics.median(times[3:])
    return work / seconds


def ratio(found: dict[str, Any], others: tuple[str, ...]) -> float:
    """The faster of ours, packed, over the fastest of the others."""
    fastest_rate = max(found[name]["pairs_per_second"] for name in others if name in found)
    own = max(found[name]["pairs_per_second"] for name in ("packed", "packed, Liger") if name in found)
    return own / fastest_rate if fastest_rate else float("inf")


def run(job: Job, name: str) -> None:
    """Both tasks at the lengths of both data sets, the more telling first."""
    settings = TINY if job.is_tiny else SETTINGS[name]
    train = "full" if name == "135m" else "lora"
    folder = write_folder(job.scratch / f"shape-{name}{'-tiny' if job.is_tiny else ''}", name, job.is_tiny)
    rate = matmul_rate(shape_of(name, job.is_tiny), job.device, 64 if job.is_tiny else 8192)
    weights = layer_weights(name, job.is_tiny)
    job.record(shape=name, trained=train, layer_weights=weights, matmul_rate=rate)
    has_flash = find_spec("flash_attn") is not None and not job.is_tiny
    with random_weights(job.device, share=train != "full"):
        packed, padded = (our_module(folder, train, layout, job) for layout in ("shared_prompt", "padded"))
        plain = our_module(folder, "head", "shared_prompt", job)
        pipe, trl = label_pipeline(folder, job), train_trl(folder, train, job)
        tasks: dict[str, dict[str, tuple[Way, tuple[Any, ...]]]] = {
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
        best: dict[str, dict[str, Any]] = {"label": {}, "train": {}}
        results: dict[str, Any] = {}
        for profile, lengths in [*PROFILES.items()][: 1 if job.is_tiny else None]:
            results[profile] = {}
            for task, ways in tasks.items():
                pairs = enough_pairs(ways["packed"], lengths, settings.seconds, job)
                found = compare(ways, pairs, settings.repetitions, best[task])
                way, setting = defaults[task]  # slow, so on fewer pairs
                few = pairs[:: max(1, len(pairs) // (4 if job.is_tiny else 16 if task == "label" else 64))]
                other = "pipeline" if task == "label" else "trl"
                found[f"{other}, defaults"] = {"setting": setting, "pairs": len(few), **way.measure(few, setting)}
                results[profile][task] = {"pairs": len(pairs), "ways": found}
                job.record(profiles=results, headline=headline(results, weights, rate))


def add_liger(
    tasks: dict[str, dict[str, tuple[Way, tuple[Any, ...]]]], folder: Path, train: str, settings: Settings, job: Job
) -> None:
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
