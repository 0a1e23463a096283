"""Peak memory of 8B models under a cap, beside what `plan` says: a fit of a reward model, and PPO on one 4-bit base.

`torch.cuda.set_per_process_memory_fraction` makes a large card as small as the one that is asked about. The weights are
random and made on the card; everything else is the command line that a user types.
"""

import contextlib
import io
import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial, wraps
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.gpu.job import Job
from benchmarks.gpu.rl import fit_prompts
from benchmarks.gpu.shapes import VOCABULARY, random_weights, write_folder
from ser_lightning.__main__ import main as command_line
from ser_lightning.models.adapter_reward import adapter_reward_model
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.models.masks import choose_layout
from ser_lightning.models.reward_model import load_reward_model
from ser_lightning.models.trainable import trainable_state
from ser_lightning.modules.ppo import PPOModule
from ser_lightning.modules.reward import RewardModule
from ser_lightning.planning.memory import device_of
from ser_lightning.planning.policy import rl_memory
from ser_lightning.rl.experience import PPOSettings
from ser_lightning.rl.policy_math import FixedKL
from ser_lightning.rl.reward_functions import ModelReward, RewardSum
from ser_lightning.rl.rollout import Sampling

GIGABYTE = 10**9
CARDS = {"qlora_12gb": 12, "qlora_24gb": 24, "lora_80gb": 80}
"""Overlay of `hardware/` -> GB of the card that it is meant for."""
SHAPE = "8b"
NUM_PAIRS = 24
CONTEXT_BYTES = 600 * 2**20
"""A CUDA context and the libraries' own memory, which PyTorch does not count: taken off the cap."""


class Peaks:
    """The largest memory while some methods run, by what they are called here; a context in which they are watched."""

    def __init__(self) -> None:
        self.allocated: dict[str, int] = {}
        self.reserved: dict[str, int] = {}
        self._undo = ExitStack()

    def __enter__(self) -> "Peaks":
        return self

    def __exit__(self, *_: Any) -> None:
        self._undo.close()

    def watch(self, owner: Any, method: str, name: str, then: Callable[[Any], None] = lambda owner: None) -> None:
        """From now on, keep the peak of a method.

        Args:
            owner: class of the method.
            method: its name.
            name: what its peak is called.
            then: gets the object after each call.
        """
        original: Callable[..., Any] = getattr(owner, method)

        @wraps(original)
        def watched(this: Any, *args: Any, **kwargs: Any) -> Any:
            reset_peak()
            try:
                return original(this, *args, **kwargs)
            finally:
                self.note(name)
                then(this)

        self._undo.enter_context(patch.object(owner, method, watched))

    def note(self, name: str) -> None:
        """The peak since it was last reset counts for this name."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.allocated[name] = max(self.allocated.get(name, 0), torch.cuda.max_memory_allocated())
            self.reserved[name] = max(self.reserved.get(name, 0), torch.cuda.max_memory_reserved())
        else:
            self.allocated.setdefault(name, 0)


def reset_peak() -> None:
    """Peaks count from here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def cap(gigabytes: int) -> int:
    """Bytes that this process may have, as on a card of this size, what PyTorch does not count taken off."""
    allowed = gigabytes * GIGABYTE - CONTEXT_BYTES
    if torch.cuda.is_available():
        there = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / there))
    return allowed


def write_pairs(file: Path, longest: int, number: int = NUM_PAIRS) -> Path:
    """Pairs of which many are as long as an overlay allows, so that the first batch is as full as any."""
    draw = np.random.default_rng(0)

    def words(number: int) -> str:
        return " ".join(f"w{i}" for i in draw.integers(2, VOCABULARY, number))

    rows = []
    for i in range(number):
        length = longest if i % 2 else int(draw.integers(longest // 4, longest))
        prompt, response = length // 3, length - length // 3 - 2
        rows.append({"prompt": words(prompt), "chosen": words(response), "rejected": words(response)})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def flags_of(overlay: str, job: Job) -> list[str]:
    """The command line of a fit with one round."""
    folder = write_folder(job.scratch / f"shape-{SHAPE}{'-tiny' if job.is_tiny else ''}", SHAPE, job.is_tiny)
    longest = 48 if job.is_tiny else 512 if overlay == "qlora_12gb" else 2048
    pairs = write_pairs(job.scratch / f"pairs-{longest}.jsonl", longest)
    flags = ["--config", "rm.yaml", "--config", "models/llama3-8b.yaml", "--config", f"hardware/{overlay}.yaml"]
    flags += ["--model.backbone.path", str(folder), "--data.path", str(pairs), "--data.seed_fraction", "0.5"]
    flags += ["--data.cache_dir", str(job.scratch / "cache"), "--model.reading", "last"]
    evolution = {"max_rounds": 1, "seed_epochs": 1, "epochs_per_round": 1, "folds": 0}
    flags += ["--evolution.rule", "ser_lightning.TopShareRule"]
    for name, value in evolution.items():
        flags += [f"--evolution.{name}", str(value)]
    if job.is_tiny:
        flags += ["--trainer.accelerator", "cpu", "--model.optimizer", "torch.optim.AdamW"]
    return flags


def planned(flags: list[str], file: Path) -> dict[str, Any]:
    """The memory that `plan` gives, in bytes."""
    with contextlib.redirect_stdout(io.StringIO()):
        code = command_line(["plan", *flags, "--json", str(file), "--overwrite"])
    if code:
        raise RuntimeError(f"plan ended with {code}")
    return json.loads(file.read_text())["memory"]


def paged_bytes(optimizer: Any) -> int:
    """Optimiser state that may leave for the host's memory, which PyTorch's allocator knows nothing of."""
    tensors = (x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor))
    return sum(x.numel() * x.element_size() for x in tensors if getattr(x, "is_paged", False))


def train(job: Job, overlay: str) -> None:
    """One fit of an 8B shape under an overlay: training and labelling, peak and plan."""
    allowed = cap(CARDS[overlay])
    flags = flags_of(overlay, job)
    plan = planned(flags, job.scratch / f"plan-{overlay}.json")
    job.record(overlay=overlay, gigabytes=CARDS[overlay], allowed_bytes=allowed, plan=plan)
    paged = [0]

    def note(module: Any) -> None:
        paged[0] = max(paged[0], paged_bytes(module.optimizers().optimizer))
        job.record(peaks=peaks.allocated, reserved=peaks.reserved, paged_bytes=paged[0])

    run = job.scratch / f"run-{overlay}-{job.file.stat().st_mtime_ns}"
    with Peaks() as peaks, random_weights(job.device):
        peaks.watch(RewardModule, "configure_model", "loading")
        peaks.watch(RewardModule, "training_step", "training", note)
        peaks.watch(RewardModule, "predict_step", "labelling", lambda module: job.record(peaks=peaks.allocated))
        code = command_line(["fit", *flags, "--run_dir", str(run), "--trainer.enable_progress_bar", "false"])
    if code:
        raise RuntimeError(f"fit ended with {code}")
    found = {"training": peaks.allocated["training"] + paged[0], "labelling": peaks.allocated["labelling"]}
    ratios = {use: plan["all"][use] / n for use, n in found.items() if n}
    job.record(peaks=peaks.allocated, reserved=peaks.reserved, paged_bytes=paged[0], plan_over_peak=ratios)
    parts = [f"{use} {n / 2**30:.2f} GiB, plan {plan['all'][use] / 2**30:.2f}" for use, n in found.items()]
    job.record(headline="; ".join(parts))


# PPO.


def reward_weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    """What a run would have saved of a reward model on this base, made up."""
    state = trainable_state(load_reward_model(backbone, "meta"))
    return {name: torch.randn(p.shape) * 0.01 for name, p in state.items()}


class SharedPPO(PPOModule):
    """`PPOModule` with a made-up reward model on the policy's base, as it takes one from a run folder."""

    def _load_judges(self, policy: Any, device: Any) -> Any:
        model = adapter_reward_model(policy, self.backbone, reward_weights(self.backbone), "reward0")
        reward = ModelReward(model, self.tokenizer, 2048, 0.0, 1.0, "made up")
        return RewardSum({"made up": reward}, {"made up": 1.0}), None


def planned_ppo(module: SharedPPO, work: dict[str, int]) -> dict[str, Any]:
    """The memory that `plan` would give for these settings, in bytes."""
    module.to("meta").configure_model()
    device = device_of("auto")
    layout = choose_layout("auto", module.policy.lm, device, "layout")
    sizes = np.full(1, work["prompt_tokens"]), work["prompts_per_step"], work["prompts_per_step"]
    budgets = cast(tuple[int, int], module.token_settings)
    return rl_memory(module, module.configure_optimizers(), *sizes, layout, budgets, "bf16-mixed", device)


def _ppo_headline(peak: int, expected: int, seconds: float) -> str:
    return f"{peak / 2**30:.2f} GiB at most, plan {expected / 2**30:.2f}; {seconds:.1f} s a step"


def ppo(job: Job) -> None:
    """Two steps of PPO of an 8B shape: policy, reference, critic and reward on one 4-bit base."""
    allowed = cap(24)
    job.record(gigabytes=24, allowed_bytes=allowed)
    folder = write_folder(job.scratch / f"shape-{SHAPE}{'-tiny' if job.is_tiny else ''}", SHAPE, job.is_tiny)
    backbone = Backbone(
        str(folder),
        lora=LoraSettings(r=16, alpha=32, dropout=0.0),
        quantize="nf4",
        dtype="bfloat16",
        gradient_checkpointing=True,
    )
    work = {"prompts_per_step": 32, "prompt_tokens": 256, "new_tokens": 64, "tokens_per_batch": 8192}
    if job.is_tiny:
        work = {"prompts_per_step": 4, "prompt_tokens": 8, "new_tokens": 6, "tokens_per_batch": 64}
    optimizer: Any = torch.optim.AdamW
    if not job.is_tiny:
        from bitsandbytes.optim import PagedAdamW8bit as optimizer
    with Peaks() as peaks, random_weights(job.device):
        peaks.watch(SharedPPO, "configure_model", "loading")
        for method, name in (("_respond", "sampling"), ("_collect", "sampling and scoring"), ("_update", "update")):
            peaks.watch(SharedPPO, method, name, lambda _: job.record(peaks=peaks.allocated, reserved=peaks.reserved))
        make = partial(
            SharedPPO,
            backbone,
            "made up",
            FixedKL(0.05),
            Sampling(work["new_tokens"]),
            PPOSettings(epochs=1, minibatches=2),
            optimizer=lambda p: optimizer(p, lr=1e-5),
            critic_optimizer=lambda p: optimizer(p, lr=1e-5),
            tokens_per_batch=work["tokens_per_batch"],
            tokens_per_sampling_batch=4 * work["tokens_per_batch"],
        )
        plan = planned_ppo(make(), work)
        job.record(plan=plan)
        steps = fit_prompts(make(), job, num_steps=2, **{k: work[k] for k in ("prompts_per_step", "prompt_tokens")})
    peak, expected = max(peaks.allocated.values()), max(plan["all"].values())
    seconds = [step["total"] for step in steps]
    job.record(work=work, peaks=peaks.allocated, reserved=peaks.reserved)
    job.record(step_seconds=seconds, headline=_ppo_headline(peak, expected, seconds[-1]))
