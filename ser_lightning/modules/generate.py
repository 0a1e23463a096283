"""Sampling from a policy as `predict`: several responses to each prompt, to make pairs for a reward model."""

import torch

from ser_lightning.data.packing import Tokens
from ser_lightning.errors import raise_problems
from ser_lightning.models.backbone import Backbone
from ser_lightning.modules.policy_base import SamplingModule
from ser_lightning.records import PromptBatch, Responses
from ser_lightning.rl.rollout import Sampling, response_texts, uniform_numbers
from ser_lightning.training.scoring import evaluating


class GenerateModule(SamplingModule):
    """Samples responses; it trains nothing.

    Args:
        backbone: a pretrained model or the folder of a run of sft.yaml or ppo.yaml.
        sampling: how it answers.
        responses_per_prompt: responses sampled to each prompt.
        tokens_per_batch: most tokens in a batch; changes memory and speed, never the result. `auto` fills the GPU's
            memory, as far as can be told, and is 16,384 on a CPU.
    """

    def __init__(
        self, backbone: Backbone, sampling: Sampling, responses_per_prompt: int = 2, tokens_per_batch: Tokens = 16384
    ) -> None:
        super().__init__(backbone)
        problems = [*backbone.problems(), *sampling.problems()]
        if responses_per_prompt < 2:
            problems.append(f"model.responses_per_prompt: got {responses_per_prompt}; a pair needs at least 2")
        if tokens_per_batch != "auto" and tokens_per_batch < 1:
            problems.append(f"model.tokens_per_batch: got {tokens_per_batch}; need at least 1")
        raise_problems(problems)
        self.sampling = sampling
        self.responses_per_prompt, self.tokens_per_batch = responses_per_prompt, tokens_per_batch

    @property
    def token_settings(self) -> tuple[Tokens, Tokens]:
        """Nothing is trained."""
        return 1, self.tokens_per_batch

    def predict_step(self, batch: PromptBatch, batch_idx: int = 0) -> list[Responses]:
        """The responses to each prompt; those of one prompt depend on the seed and its id alone."""
        group, width = self.responses_per_prompt, self.sampling.max_new_tokens
        numbers = [uniform_numbers((self._seed, "generate", p.prompt_id), group, width) for p in batch.prompts]
        if not numbers:
            return []
        ids = [prompt.ids for prompt in batch.prompts for _ in range(group)]
        with evaluating(self.policy):
            rollout = self.generator.sample(self.policy, "policy", ids, torch.cat(numbers).to(self.device))
        texts, ended = response_texts(self.tokenizer, rollout), rollout.has_ended.tolist()
        return [
            Responses(prompt.prompt_id, prompt.turns, texts[i : i + group], ended[i : i + group])
            for prompt, i in zip(batch.prompts, range(0, len(texts), group), strict=True)
        ]
