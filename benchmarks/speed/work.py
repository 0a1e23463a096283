"""One measurement of `run.py` in a process of its own: `python -m benchmarks.speed.work SETTINGS.json`.

Prints one JSON line. Runs in our environment and, for training with TRL, in one with trl 1.16.0.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.speed.lengths import MODEL, text_of

Pairs = list[tuple[list[int], list[int]]]
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
LEARNING_RATE = 1e-4


class Counter:
    """Tokens that went through a body, padding included."""

    def __init__(self) -> None:
        self.tokens = 0

    def watch(self, body: torch.nn.Module) -> None:
        """Count from now on."""

        def count(module: Any, args: Any, kwargs: Any) -> None:
            self.tokens += (args[0] if args else kwargs["input_ids"]).numel()

        body.register_forward_pre_hook(count, with_kwargs=True)


class Store:
    """What the batches need of a `PairStore`, from memory."""

    def __init__(self, pairs: Pairs) -> None:
        from ser_lightning.data.packing import num_shared_tokens

        self.pairs = [(np.asarray(a), np.asarray(b)) for a, b in pairs]
        self.pair_id = self.joint_dialogue_id = np.arange(len(pairs))
        self.num_tokens = np.array([[len(a), len(b)] for a, b in pairs])
        self.num_shared = np.array([num_shared_tokens(pair) for pair in self.pairs])
        self.response_start = np.zeros(len(pairs), dtype=np.int32)

    def ids(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return self.pairs[row]


def ours(settings: dict[str, Any], layout: str) -> Any:
    """Our module as `fit` makes it: everything is trained, Bradley-Terry alone."""
    from ser_lightning.models.backbone import Backbone
    from ser_lightning.modules.reward import RewardModule

    return RewardModule(
        Backbone(settings["model"], train="full", template="paper"),
        optimizer=lambda p: torch.optim.AdamW(p, lr=LEARNING_RATE, weight_decay=0.0),
        lr_decay="none",
        warmup_share=0.0,
        center_rewards_coefficient=0.0,
        layout=layout,
        reading="last",
    )


def train_ours(settings: dict[str, Any]) -> dict[str, Any]:
    """One epoch through the Trainer, after a short one to warm up."""
    from lightning.pytorch import Callback, Trainer

    from ser_lightning.datamodules.batches import PairSet, Shard, TrainingSteps, make_loader

    counter, seconds = Counter(), [0.0]

    class Clock(Callback):
        def on_train_start(self, *_: Any) -> None:
            counter.tokens, seconds[0] = 0, time.perf_counter()

        def on_train_end(self, *_: Any) -> None:
            seconds[0] = time.perf_counter() - seconds[0]

    module = ours(settings, settings["layout"])
    for pairs in (settings["pairs"][:4], settings["pairs"]):
        trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=[Clock()], **QUIET)
        module.trainer = trainer
        module.configure_model()
        counter.watch(module.reward_model.body) if len(pairs) == len(settings["pairs"]) else None
        chosen = PairSet.labelled(np.arange(len(pairs)), np.ones(len(pairs)))
        shard = Shard(0, 1, settings["tokens_per_batch"], 0, module.layout)
        order = np.random.default_rng(settings["seed"]).permutation(len(pairs))
        steps = TrainingSteps(Store(pairs), chosen, order, settings["pairs_per_step"], shard)
        trainer.fit(module, make_loader(steps, 0))
    return {"seconds": seconds[0], "tokens": counter.tokens}


def train_trl(settings: dict[str, Any]) -> dict[str, Any]:
    """`RewardTrainer` over the same ids, with an optimiser step for as many pairs."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    counter, seconds = Counter(), [0.0]

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            counter.tokens, seconds[0] = 0, time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            seconds[0] = time.perf_counter() - seconds[0]

    class Grouping(RewardTrainer):
        """Keeps the column of lengths, without which TRL 1.16 cannot group pairs by length."""

        def _set_signature_columns_if_needed(self) -> None:
            super()._set_signature_columns_if_needed()
            self._signature_columns = [*self._signature_columns, "length"]

    model = AutoModelForSequenceClassification.from_pretrained(settings["model"], dtype=torch.float32)
    counter.watch(model.model)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    for pairs in (settings["pairs"][:4], settings["pairs"]):
        columns = {
            "chosen_ids": [a for a, _ in pairs],
            "rejected_ids": [b for _, b in pairs],
            "length": [max(len(a), len(b)) for a, b in pairs],
        }
        config = RewardConfig(
            output_dir=str(Path(settings["scratch"]) / "trl"),
            per_device_train_batch_size=settings["batch"],
            gradient_accumulation_steps=max(1, settings["pairs_per_step"] // settings["batch"]),
            train_sampling_strategy="group_by_length" if settings["is_sorted"] else "random",
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            bf16=False,
            gradient_checkpointing=False,
            max_length=None,
            seed=settings["seed"],
            report_to="none",
            save_strategy="no",
            logging_steps=1000,
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        dataset = Dataset.from_dict(columns)
        trainer = Grouping(model, config, train_dataset=dataset, processing_class=tokenizer, callbacks=[Clock()])
        trainer.train()
    return {"seconds": seconds[0], "tokens": counter.tokens}


def label_ours(settings: dict[str, Any]) -> dict[str, Any]:
    """Every pair once, as the evolution scores its pool."""
    from ser_lightning.datamodules.batches import PairSet, ScoringBatches, Shard, make_loader
    from ser_lightning.training.scoring import evaluating

    module, counter = ours(settings, settings["layout"]), Counter()
    module.configure_model()
    counter.watch(module.reward_model.body)

    def score(pairs: Pairs) -> None:
        shard = Shard(0, 1, settings["tokens_per_batch"], 0, module.layout)
        batches = ScoringBatches(Store(pairs), PairSet.unlabelled(np.arange(len(pairs))), shard)
        with evaluating(module):
            found = [module.predict_step(batch) for batch in make_loader(batches, 0)]
        assert sum(map(len, found)) == len(pairs)

    return timed(score, settings["pairs"], counter)


def label_pipeline(settings: dict[str, Any]) -> dict[str, Any]:
    """A transformers pipeline over the texts of all conversations, tokenisation included."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=settings["model"], dtype=torch.float32, device="cpu")
    counter = Counter()
    counter.watch(classify.model.model)

    def score(pairs: Pairs) -> None:
        sequences = [ids for pair in pairs for ids in pair]
        sequences.sort(key=len, reverse=True) if settings["is_sorted"] else None
        found = classify([text_of(ids) for ids in sequences], batch_size=settings["batch"])
        assert len(found) == 2 * len(pairs)

    return timed(score, settings["pairs"], counter)


def timed(score: Callable[[Pairs], None], pairs: Pairs, counter: Counter) -> dict[str, Any]:
    """Seconds of scoring all pairs, after a few to warm up."""
    score(pairs[:4])
    counter.tokens, start = 0, time.perf_counter()
    score(pairs)
    return {"seconds": time.perf_counter() - start, "tokens": counter.tokens}


def matmul_rate(settings: dict[str, Any]) -> dict[str, Any]:
    """Floating-point operations a second of float32 matrix products of the model's own shapes."""
    hidden, inner = MODEL["hidden_size"], MODEL["intermediate_size"]
    rates = []
    for rows, columns in ((hidden, hidden), (hidden, inner), (inner, hidden)):
        x, weight = torch.randn(1024, rows), torch.randn(columns, rows)
        for _ in range(3):
            torch.nn.functional.linear(x, weight)
        seconds = []
        for _ in range(40):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            seconds.append(time.perf_counter() - start)
        rates.append(2 * 1024 * rows * columns / statistics.median(seconds))
    return {"rate": statistics.harmonic_mean(rates)}


WORK = {
    "train_ours": train_ours,
    "train_trl": train_trl,
    "label_ours": label_ours,
    "label_pipeline": label_pipeline,
    "matmul": matmul_rate,
}


def main() -> None:
    """Do what the settings say."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(settings["threads"])
    found = SimpleNamespace(**WORK[settings["work"]](settings))
    names = ["torch", "transformers", *(["trl"] if settings["work"] == "train_trl" else [])]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**vars(found), "peak_bytes": peak, "versions": {name: version(name) for name in names}}))


if __name__ == "__main__":
    main()
