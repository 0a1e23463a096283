"""Ways to label and to train on one GPU, each on the same weights and pairs: ours, a pipeline and TRL's trainer."""

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback, pipeline

from benchmarks.gpu.job import Job
from benchmarks.speed.lengths import text_of
from benchmarks.speed.work import Counter, Store
from ser_lightning.datamodules.batches import PairSet, ScoringBatches, Shard, TrainingSteps, make_loader
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.models.loading import use_liger_kernels
from ser_lightning.modules.reward import RewardModule
from ser_lightning.training.scoring import evaluating

Pairs = list[tuple[list[int], list[int]]]
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
LEARNING_RATE = 1e-5
PAIRS_PER_STEP = 64
LORA = {"r": 16, "alpha": 32, "dropout": 0.0}


class Clock:
    """Seconds of training alone, as either trainer tells."""

    def __init__(self, counter: Counter) -> None:
        self.counter, self.start, self.seconds = counter, 0.0, 0.0

    def begin(self) -> None:
        """Training starts now."""
        synchronize()
        self.counter.tokens, self.start = 0, time.perf_counter()

    def end(self) -> None:
        """Training is over; waits after it, for an optimiser that moves to the CPU, are none of its steps'."""
        synchronize()
        self.seconds = time.perf_counter() - self.start
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")

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
        reading="last",  # as the others
    )
    module.trainer = _trainer(job)
    module.configure_model()
    module.to(job.device)
    if has_liger:
        use_liger_kernels(module.reward_model.model, job.device)
    # Lightning moves a module to the CPU after a fit: 16 GB each time, and an end to what is shared.
    module.cpu = lambda: module  # type: ignore[method-assign]
    return module


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
        use_liger_kernels(model, job.device)
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
        use_liger_kernels(model, job.device)
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
