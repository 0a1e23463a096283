"""Seconds of an RL step and sampled tokens a second on one GPU: ours, TRL's RLOO, and transformers' own samplers.

One random model with adapters, the same prompts, a reward that costs nothing. Random weights hardly ever draw the token
that ends a response, so all responses are as long as they may be and every side has the same work.
"""

import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TrainerCallback
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.gpu.job import Job
from benchmarks.gpu.shapes import VOCABULARY, random_weights, write_folder
from benchmarks.gpu.waits import counted_waits
from benchmarks.gpu.waits import summary as waits_of
from benchmarks.rl_speed.clock import StepClock
from benchmarks.rl_speed.run import timed_module
from ser_lightning.datamodules.batches import make_loader
from ser_lightning.datamodules.prompts import PromptSteps
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.records import Prompt
from ser_lightning.rl.experience import PPOSettings
from ser_lightning.rl.policy_math import FixedKL
from ser_lightning.rl.rollout import Sampling, uniform_numbers

QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
WORK = {"prompts_per_step": 32, "responses_per_prompt": 4, "prompt_tokens": 128, "new_tokens": 128}
TINY = {"prompts_per_step": 2, "responses_per_prompt": 2, "prompt_tokens": 6, "new_tokens": 4}
LEARNING_RATE = 1e-5
KL_WEIGHT = 0.05
WARM_UP = 1


class CudaClock(StepClock):
    """Waits for the card whenever a phase ends."""

    def enter(self, phase: str) -> None:
        """From now on it is this phase."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        super().enter(phase)


class LightningSteps(Callback):
    """Tells a clock that a step of Lightning's trainer is over."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """A step is a batch."""
        self.clock.end_step()


class CountedStep(Callback):
    """Counts the waits for the card in one step of Lightning's trainer, and leaves them in `waits`."""

    def __init__(self, step: int) -> None:
        self.step, self.waits = step, Counter[str]()
        self._stack = ExitStack()

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """Begin."""
        if batch_idx == self.step:
            self.waits = self._stack.enter_context(counted_waits())

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """End."""
        self._stack.close()


def made_up_prompts(number: int, num_tokens: int) -> list[Prompt]:
    """Prompts of random words, whose encoding is the words' ids."""
    draw = np.random.default_rng(0)
    ids = draw.integers(2, VOCABULARY, (number, num_tokens)).tolist()
    return [Prompt(i, [{"role": "user", "content": " ".join(f"w{n}" for n in row)}], row) for i, row in enumerate(ids)]


def fit_prompts(
    module: Any, job: Job, num_steps: int, prompts_per_step: int, prompt_tokens: int, *callbacks: Callback
) -> list[dict[str, float]]:
    """Some steps of an RL module under a bare Trainer: the seconds of each."""
    clock = CudaClock()
    prompts = made_up_prompts(4 * prompts_per_step, prompt_tokens)
    steps = PromptSteps(prompts, 0, num_steps, prompts_per_step, 0, 0, 1)
    settings: dict[str, Any] = {"accelerator": job.accelerator, "devices": 1, "precision": "bf16-mixed"}
    watching = [LightningSteps(clock), *callbacks]
    trainer = Trainer(**settings, max_epochs=1, log_every_n_steps=1, callbacks=watching, **QUIET)
    trainer.fit(module, make_loader(steps, 0))
    return clock.steps


def count_words(prompts: Sequence[Any], responses: Sequence[Any]) -> list[float]:
    """A reward that costs nothing: how many different words a response has, in hundreds."""
    return [len(set(str(response).split())) / 100 for response in responses]


def ours(folder: Path, job: Job, work: dict[str, int], num_steps: int, waits: dict[str, Any]) -> list[dict[str, float]]:
    """Steps of our RLOO; `waits` gets how often one more of them waits for the card, besides the clock."""
    clock, last = CudaClock(), CountedStep(num_steps)
    settings = PPOSettings(epochs=1, minibatches=1, whiten_advantages=False, missing_eos_penalty=0.0)
    module = timed_module(clock)(
        Backbone(str(folder), lora=LoraSettings(r=16, alpha=32, dropout=0.0), dtype="bfloat16"),
        "benchmarks.gpu.rl.count_words",
        FixedKL(KL_WEIGHT),
        Sampling(work["new_tokens"]),
        settings,
        advantage="rloo",
        responses_per_prompt=work["responses_per_prompt"],
        optimizer=lambda p: torch.optim.AdamW(p, lr=LEARNING_RATE, weight_decay=0.0),
        tokens_per_batch=16384,
        tokens_per_sampling_batch=65536,
        layout="padded" if job.is_tiny else "shared_prompt",
    )
    fit_prompts(module, job, num_steps + 1, work["prompts_per_step"], work["prompt_tokens"], last)
    waits |= waits_of(last.waits)
    return clock.steps[:num_steps]


def trl(folder: Path, job: Job, work: dict[str, int], num_steps: int, is_continuous: bool) -> list[dict[str, float]]:
    """Steps of TRL's RLOO, with the sampler of `generate` or with continuous batching."""
    from datasets import Dataset
    from peft import LoraConfig

    clock = CudaClock()
    trainer_class, tell = timed_trl(clock)
    prompts = made_up_prompts(4 * work["prompts_per_step"], work["prompt_tokens"])
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16),
        reward_funcs=lambda prompts, completions, **_: count_words(prompts, completions),
        args=trl_config(job, work, num_steps, is_continuous),
        train_dataset=Dataset.from_list([{"prompt": prompt.turns} for prompt in prompts]),
        processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
        peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"),
        callbacks=[tell],
    )
    trainer.train()
    return clock.steps


def timed_trl(clock: StepClock) -> tuple[type, TrainerCallback]:
    """TRL's RLOO trainer and a callback for it, which tell a clock where they are."""
    from trl import RLOOTrainer

    class Steps(TrainerCallback):
        """Tells the clock that a step is over."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end_step()

    class TimedTrainer(RLOOTrainer):
        """Tells the clock where it is."""

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            clock.enter("rollout")
            completions = super()._generate_single_turn(*args, **kwargs)
            clock.enter("scoring")
            rows = completions[0] if isinstance(completions, tuple) else completions
            clock.count("tokens", sum(map(len, rows)))
            return completions

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            batch = super()._generate_and_score_completions(inputs)
            clock.enter("update")
            return batch

    return TimedTrainer, Steps()


def trl_config(job: Job, work: dict[str, int], num_steps: int, is_continuous: bool) -> Any:
    """The same work as `ours`."""
    from trl import RLOOConfig

    return RLOOConfig(
        output_dir=str(job.scratch / "trl"),
        per_device_train_batch_size=work["prompts_per_step"] * work["responses_per_prompt"],
        gradient_accumulation_steps=1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
        use_cpu=job.is_tiny,
        max_steps=num_steps,
        num_generations=work["responses_per_prompt"],
        steps_per_generation=1,
        max_completion_length=work["new_tokens"],
        beta=KL_WEIGHT,
        use_transformers_continuous_batching=is_continuous,
    )


def samplers(folder: Path, job: Job, work: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Tokens a second of sampling alone: ours, `generate`, and continuous batching."""
    from ser_lightning.models.policy import load_policy
    from ser_lightning.rl.rollout import Generator

    backbone = Backbone(str(folder), lora=LoraSettings(r=16, alpha=32, dropout=0.0), dtype="bfloat16")
    policy = load_policy(backbone, job.device).to(job.device).eval()
    bare = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    group, room = work["responses_per_prompt"], work["new_tokens"]
    prompts = [p.ids for p in made_up_prompts(work["prompts_per_step"], work["prompt_tokens"]) for _ in range(group)]
    numbers = uniform_numbers((0,), len(prompts), room).to(job.device)
    generator = Generator(Sampling(room), [1], 0, tokens_per_batch=65536)
    settings = GenerationConfig(max_new_tokens=room, do_sample=True, top_k=0, eos_token_id=1, pad_token_id=0)

    def our_sampler() -> int:
        with torch.autocast(job.device, torch.bfloat16):
            return int(generator.sample(policy, "policy", prompts, numbers).response_mask.sum())

    def generate() -> int:
        ids = torch.tensor(prompts, device=job.device)
        with torch.no_grad():
            rows = bare.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        return int((rows[:, ids.shape[1] :] != 0).sum())

    def continuous() -> int:
        # By itself it takes most of the memory there is, which on a CPU is slow.
        small = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64) if job.is_tiny else None
        found = bare.generate_batch(prompts, generation_config=settings, continuous_batching_config=small)
        return sum(len(output.generated_tokens) for output in found.values())

    ways = {"ours": our_sampler, "generate": generate, "generate_batch": continuous}
    found: dict[str, dict[str, Any]] = {}
    for name, way in ways.items():
        found[name] = tokens_per_second(way, 1 if job.is_tiny else 2)
        job.record(samplers=found)
    return found


def tokens_per_second(way: Callable[[], int], repetitions: int) -> dict[str, Any]:
    """Median over some repetitions, after one to warm up; what cannot run says why."""
    rates = []
    try:
        for _ in range(repetitions + 1):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            number = way()
            rates.append(number / (time.perf_counter() - start))
    except Exception as error:  # a sampler of somebody else's must not cost the other figures
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return {"tokens_per_second": statistics.median(rates[1:]), "runs": rates[1:], "tokens": number}


def summary(steps: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the steps that do not warm up."""
    measured = steps[WARM_UP:]
    found: dict[str, Any] = {
        name: statistics.median(step[name] for step in measured) for name in ("rollout", "scoring", "update", "total")
    }
    found["tokens"] = statistics.fmean(step["tokens"] for step in measured)
    return {**found, "steps": len(measured), "rollout_tokens_per_second": found["tokens"] / found["rollout"]}


def run(job: Job) -> None:
    """Steps of both sides, then the samplers alone."""
    work = TINY if job.is_tiny else WORK
    folder = write_folder(job.scratch / f"shape-0.5b{'-tiny' if job.is_tiny else ''}", "0.5b", job.is_tiny)
    num_steps = WARM_UP + (1 if job.is_tiny else 3)
    waits: dict[str, Any] = {}
    sides: dict[str, Callable[[], list[dict[str, float]]]] = {
        "ours": lambda: ours(folder, job, work, num_steps, waits),
        "trl": lambda: trl(folder, job, work, num_steps, False),
    }
    if not job.is_tiny:
        sides["trl, continuous batching"] = lambda: trl(folder, job, work, num_steps, True)
    found: dict[str, Any] = {}
    with random_weights(job.device):
        for name, side in sides.items():
            try:
                found[name] = summary(side())
            except Exception as error:
                if name != "trl, continuous batching":
                    raise
                found[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            job.record(shape="0.5b", work=work, sides=found, waits=waits)
        sampled = samplers(folder, job, work)
    times = found["trl"]["total"] / found["ours"]["total"]
    rates = ", ".join(f"{k} {v['tokens_per_second']:.0f}" for k, v in sampled.items() if "tokens_per_second" in v)
    job.record(headline=f"TRL takes {times:.2f} times as long a step; tokens a second: {rates}")
