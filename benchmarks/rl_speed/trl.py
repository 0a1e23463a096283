"""TRL's side of `benchmarks/rl_speed`, run by the Python of an environment with TRL.

    PY -m benchmarks.rl_speed.trl SETTINGS.json

Prints one JSON line: seconds by phase and the counts of each step. `rloo` needs trl 1.16.0, `gae` trl 1.12.0.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from benchmarks.rl_speed.clock import StepClock


class EndOfStep(TrainerCallback):
    """Tells the clock that a step is over."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.clock.end_step()


def arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """What both configs take: full float32 training without anything that is not a step."""
    return {
        "output_dir": str(Path(settings["scratch"]) / "trl"),
        "per_device_train_batch_size": settings["prompts_per_step"] * settings["responses_per_prompt"],
        "gradient_accumulation_steps": 1,
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "bf16": False,
        "gradient_checkpointing": False,
        "temperature": 1.0,
        "seed": settings["seed"],
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1000,
        "disable_tqdm": True,
        "use_cpu": True,
    }


def load_lm(settings: dict[str, Any]) -> Any:
    """The policy as training starts from it."""
    return AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)


def load_classifier(folder: str) -> Any:
    """A model with one number for a sequence."""
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)


def run_rloo(settings: dict[str, Any], clock: StepClock) -> None:
    """Some steps of `RLOOTrainer`."""
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    class TimedTrainer(RLOOTrainer):
        """Tells the clock where it is."""

        def _generate_single_turn(self, *args: Any) -> Any:
            clock.enter("rollout")
            completions = super()._generate_single_turn(*args)
            clock.enter("scoring")
            clock.count("tokens", sum(map(len, completions)))
            return completions

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            batch = super()._generate_and_score_completions(inputs)
            clock.enter("update")
            return batch

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            clock.count("rows_with_gradient", len(inputs["completion_ids"]))
            clock.count("policy_backwards", 1)
            return super()._compute_loss(model, inputs)

    config = RLOOConfig(
        **arguments(settings),
        max_steps=settings["num_steps"],
        num_generations=settings["responses_per_prompt"],
        steps_per_generation=1,
        num_iterations=settings["epochs"],
        max_completion_length=settings["max_new_tokens"],
        beta=settings["kl_weight"],
    )
    prompts = json.loads(Path(settings["prompts"]).read_text())
    trainer = TimedTrainer(
        model=load_lm(settings),
        reward_funcs=load_classifier(settings["reward"]),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": turns} for turns in prompts]),
        processing_class=AutoTokenizer.from_pretrained(settings["model"], padding_side="left"),
        reward_processing_classes=AutoTokenizer.from_pretrained(settings["reward"]),
        callbacks=[EndOfStep(clock)],
    )
    trainer.train()


def run_ppo(settings: dict[str, Any], clock: StepClock) -> None:
    """Some steps of the experimental `PPOTrainer`, whose phases are told apart by the functions that it calls."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    tokenizer = AutoTokenizer.from_pretrained(settings["model"], padding_side="left")
    generate, forward = ppo_trainer.batch_generation, ppo_trainer.forward

    def timed_generate(model: Any, queries: torch.Tensor, *args: Any) -> Any:
        clock.enter("rollout")
        sequences, logits = generate(model, queries, *args)
        clock.enter("scoring")
        clock.count("tokens", int((sequences[:, queries.shape[1] :] != tokenizer.pad_token_id).sum()))
        return sequences, logits

    def timed_forward(model: Any, sequences: torch.Tensor, *args: Any) -> Any:
        if torch.is_grad_enabled():
            clock.enter("update")
            clock.count("rows_with_gradient", len(sequences))
            clock.count("policy_backwards", 1)
        return forward(model, sequences, *args)

    ppo_trainer.batch_generation, ppo_trainer.forward = timed_generate, timed_forward
    num_responses = settings["prompts_per_step"]
    config = PPOConfig(
        **arguments(settings),
        total_episodes=settings["num_steps"] * num_responses,
        local_rollout_forward_batch_size=num_responses,
        num_sample_generations=0,
        num_ppo_epochs=settings["epochs"],
        num_mini_batches=settings["minibatches"],
        response_length=settings["max_new_tokens"],
        stop_token="eos",
        missing_eos_penalty=1.0,
        kl_coef=settings["kl_weight"],
    )
    prompts = json.loads(Path(settings["prompts"]).read_text())
    encoded = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=load_lm(settings),
        ref_model=load_lm(settings),
        reward_model=load_classifier(settings["reward"]),
        value_model=load_classifier(settings["model"]),
        train_dataset=Dataset.from_dict({"input_ids": encoded["input_ids"]}),
        callbacks=[EndOfStep(clock)],
    )
    trainer.train()


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    the_clock = StepClock()
    the_clock.count_optimizer_steps()
    {"rloo": run_rloo, "gae": run_ppo}[given["estimator"]](given, the_clock)
    names = ("torch", "transformers", "trl", "accelerate")
    print(json.dumps({"steps": the_clock.steps, "versions": {name: version(name) for name in names}}))
