"""A reward model as the function that other trainers call: `from ser_lightning import reward_function`."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from ser_lightning.errors import UserError
from ser_lightning.inference.scorer import Prompts, Scorer
from ser_lightning.records import Turn


def reward_function(scorer: Scorer) -> Callable[..., list[float]]:
    """What `reward_funcs` of TRL's `GRPOTrainer` and `RLOOTrainer` takes.

    The function gets N prompts and N completions, both as texts or both as lists of turns, ignores every other keyword,
    and returns N raw rewards in logits. Completions that do not fit are judged by their front, as PPO does here.

    Example:
        trainer = GRPOTrainer(model, reward_funcs=reward_function(Scorer.load("runs/NAME")), ...)

    Args:
        scorer: gives the rewards.
    """

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        both = [_prompt_and_response(*one) for one in zip(prompts, completions, strict=True)]
        rewards = scorer.score(cast(Prompts, [prompt for prompt, _ in both]), [text for _, text in both], cut_long=True)
        return [float(reward) for reward in rewards]

    return reward


def _prompt_and_response(prompt: str | list[Turn], completion: str | list[Turn]) -> tuple[str | list[Turn], str]:
    """A completion of several turns is judged by its last one, after all the others."""
    if isinstance(completion, str):
        return prompt, completion
    if isinstance(prompt, str) or not completion:
        raise UserError(
            f"completion: got {len(completion)} turns for a prompt of type {type(prompt).__name__}; give both as texts "
            "or both as turns"
        )
    return [*prompt, *completion[:-1]], completion[-1]["content"]
