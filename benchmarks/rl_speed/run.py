"""Seconds of one RL step, ours against TRL.

    python -m benchmarks.rl_speed.run --trl-python-rloo PY --trl-python-ppo PY    # adds to results.jsonl
    python -m benchmarks.tables                                                   # writes the table into docs/rl.md

Each PY is the Python of a virtual environment with TRL: 1.16.0 for RLOO, 1.12.0 for PPO, which later ones lack. Both
sides train the bundled model in full and in float32 on the same prompts, with a random reward model of the same body.
Their blocks take turns, each in a process of its own with one thread.
"""

import argparse
import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.rl_speed.clock import PHASES, StepClock
from benchmarks.shared.results import Results, machine, versions
from benchmarks.shared.runs import child_environment, run_child

COMMON = {"max_new_tokens": 64, "kl_weight": 0.05, "learning_rate": 1e-5}
SETTINGS = {
    "rloo": {**COMMON, "prompts_per_step": 16, "responses_per_prompt": 4, "epochs": 1, "minibatches": 1},
    "gae": {**COMMON, "prompts_per_step": 64, "responses_per_prompt": 1, "epochs": 2, "minibatches": 2},
}


def timed_module(clock: StepClock) -> Any:
    """`PPOModule` as a class that tells a clock where it is."""
    from torch import Tensor

    from ser_lightning.modules.ppo import PPOModule
    from ser_lightning.records import PromptBatch, Rollout, RolloutBatch
    from ser_lightning.rl.experience import Experience

    class TimedModule(PPOModule):
        """Tells the clock where it is."""

        def _respond(self, *args: Any) -> Rollout:
            clock.enter("rollout")
            rollout = super()._respond(*args)
            clock.enter("scoring")
            clock.count("tokens", int(rollout.response_mask.sum()))
            return rollout

        def _update(self, *args: Any) -> Tensor:
            clock.enter("update")
            return super()._update(*args)

        def _policy_backward(self, experience: Experience, part: RolloutBatch, num_tokens: Tensor) -> list[Tensor]:
            clock.count("rows_with_gradient", len(part.inputs.num_tokens))
            clock.count("policy_backwards", 1)
            return super()._policy_backward(experience, part, num_tokens)

        def on_train_batch_end(self, outputs: Any, batch: PromptBatch, batch_idx: int) -> None:
            clock.end_step()

    return TimedModule


def run_ours(settings: dict[str, Any]) -> list[dict[str, float]]:
    """Some steps of `PPOModule` under a bare Trainer."""
    import torch
    from lightning.pytorch import Trainer, seed_everything

    from ser_lightning.data.encode import encode_prompts
    from ser_lightning.datamodules.batches import make_loader
    from ser_lightning.datamodules.prompts import PromptSteps
    from ser_lightning.models.backbone import Backbone, load_tokenizer
    from ser_lightning.records import Prompt
    from ser_lightning.rl.experience import PPOSettings
    from ser_lightning.rl.policy_math import FixedKL
    from ser_lightning.rl.rollout import Sampling

    clock = StepClock()
    clock.count_optimizer_steps()

    seed_everything(settings["seed"], verbose=False)
    backbone, estimator = Backbone(settings["model"], train="full"), settings["estimator"]
    ppo = PPOSettings(settings["epochs"], settings["minibatches"], whiten_advantages=estimator == "gae")
    if estimator == "rloo":
        ppo.missing_eos_penalty = 0.0  # TRL's RLOO has none
    module = timed_module(clock)(
        backbone,
        settings["reward"],
        FixedKL(settings["kl_weight"]),
        Sampling(settings["max_new_tokens"]),
        ppo,
        advantage=estimator,
        responses_per_prompt=settings["responses_per_prompt"],
        optimizer=lambda p: torch.optim.AdamW(p, lr=settings["learning_rate"], weight_decay=0.0),
        critic_optimizer=lambda p: torch.optim.AdamW(p, lr=settings["learning_rate"], weight_decay=0.0),
    )
    turns = json.loads(Path(settings["prompts"]).read_text())
    ids = encode_prompts(load_tokenizer(backbone), turns, 192)
    prompts = [Prompt(number, turns[number], ids[number]) for number in range(len(turns))]
    steps = PromptSteps(prompts, 0, settings["num_steps"], settings["prompts_per_step"], settings["seed"], 0, 1)
    unwanted = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet: dict[str, Any] = dict.fromkeys(unwanted, False)
    trainer = Trainer(accelerator="cpu", max_epochs=1, log_every_n_steps=1, **quiet)
    trainer.fit(module, make_loader(steps, 0))
    return clock.steps


def write_inputs(scratch: Path, num_prompts: int) -> dict[str, str]:
    """Prompts of the synthetic world, and a random reward model on the bundled body."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from ser_lightning.models.backbone import Backbone, load_tokenizer
    from ser_lightning.models.loading import quiet_load_report
    from ser_lightning.synthetic.world import write_prompt

    backbone = Backbone("world_lm")
    path = backbone.resolved_path()
    torch.manual_seed(0)
    with quiet_load_report():
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    # Ours takes no reward model whose scale was never fitted.
    model.config.reward_temperature, model.config.reward_zero = 1.5, 0.1
    model.save_pretrained(scratch / "reward")
    load_tokenizer(backbone).save_pretrained(scratch / "reward")
    generator = random.Random("rl speed")
    texts: dict[str, None] = {}
    while len(texts) < num_prompts:
        texts[write_prompt(generator)] = None
    (scratch / "prompts.json").write_text(json.dumps([[{"role": "user", "content": text}] for text in texts]))
    paths = {"reward": str(scratch / "reward"), "prompts": str(scratch / "prompts.json")}
    return {"model": path, **paths}


def run_block(words: list[str], settings: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """One side's block in a process of its own: its steps and versions."""
    file = scratch / "settings.json"
    file.write_text(json.dumps({**settings, "scratch": str(scratch)}))
    printed = run_child([*words, str(file)], {**child_environment(), "CUDA_VISIBLE_DEVICES": ""})
    return json.loads(printed.splitlines()[-1])


def summary(blocks: list[dict[str, Any]], num_warm_up: int) -> dict[str, Any]:
    """Medians over the steps of all blocks without those that warm up, and counts of the work of a step."""
    steps = [step for block in blocks for step in block["steps"][num_warm_up:]]
    counts = ("tokens", "rows_with_gradient", "policy_backwards", "optimizer_steps")
    return {
        "median_seconds": {name: statistics.median(step[name] for step in steps) for name in (*PHASES, "total")},
        "mean_counts": {name: statistics.fmean(step[name] for step in steps) for name in counts},
        "block_median_seconds": [statistics.median(s["total"] for s in b["steps"][num_warm_up:]) for b in blocks],
        "steps": len(steps),
        "versions": blocks[0]["versions"],
    }


def compare(estimator: str, trl_python: str, inputs: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """Blocks of ours and of TRL in turns."""
    settings = {**SETTINGS[estimator], "estimator": estimator, "num_steps": args.warm_up + args.steps}
    sides = {
        "ours": [sys.executable, "-m", "benchmarks.rl_speed.run", "--ours"],
        "trl": [trl_python, "-m", "benchmarks.rl_speed.trl"],
    }
    blocks: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for seed in range(args.blocks):
        for side, words in sides.items():
            blocks[side].append(run_block(words, {**settings, **inputs, "seed": seed}, args.scratch))
            print(estimator, side, [round(step["total"], 2) for step in blocks[side][-1]["steps"]], flush=True)
    found = {side: summary(results, args.warm_up) for side, results in blocks.items()}
    num_responses = settings["prompts_per_step"] * settings["responses_per_prompt"]
    for result in found.values():
        result["mean_tokens_per_response"] = result["mean_counts"]["tokens"] / num_responses
    ours, trl = (found[side]["median_seconds"] for side in sides)
    ratios = {name: trl[name] / ours[name] for name in (*PHASES[:3], "total")}
    return {"estimator": estimator, "settings": settings, **found, "trl_seconds_over_ours": ratios}


def main() -> None:
    """Every estimator whose TRL is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python-rloo", help="Python with trl 1.16.0")
    parser.add_argument("--trl-python-ppo", help="Python with trl 1.12.0")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="measured steps in a block")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--scratch", type=Path, default=Path("runs/rl_speed"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.jsonl")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ours:
        steps = run_ours(json.loads(args.ours.read_text()))
        print(json.dumps({"steps": steps, "versions": versions("torch", "lightning", "transformers")}))
        return
    pythons = {"rloo": args.trl_python_rloo, "gae": args.trl_python_ppo}
    if not any(pythons.values()):
        parser.error("give --trl-python-rloo, --trl-python-ppo or both")
    args.scratch.mkdir(parents=True, exist_ok=True)
    before = machine()
    inputs = write_inputs(args.scratch, num_prompts=512)
    for estimator, python in pythons.items():
        if python:
            found = compare(estimator, python, inputs, args)
            # The processor's load before the first block, not the one that these make.
            Results(args.out, "estimator").add({**found, "machine": before})


if __name__ == "__main__":
    main()
