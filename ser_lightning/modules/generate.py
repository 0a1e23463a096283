"""Sampling from a policy as `predict`: several responses to each prompt, to make pairs for a reward model."""

from collections.abc import Sequence

import torch

from ser_lightning.data.packing import Tokens
from ser_lightning.errors import raise_problems
from ser_lightning.models.backbone import Backbone
from ser_lightning.models.policy import Policy
from ser_lightning.modules.policy_base import PolicyModule
from ser_lightning.records import Prompt, PromptBatch, Responses
from ser_lightning.rl.rollout import Generator, Sampling, check_room, response_texts, stop_ids, uniform_numbers
from ser_lightning.training.scoring import evaluating


class GenerateModule(PolicyModule):
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

    def _load_models(self, device: torch.device) -> Policy:
        policy = super()._load_models(device)
        self._stop_ids = stop_ids(policy.lm.generation_config.eos_token_id, self.tokenizer, self.sampling.stop)
        return policy

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Called by the data module before sampling: `UserError` if a prompt leaves no room for a response."""
        check_room(prompts, self.sampling.max_new_tokens, self.policy.lm.config.get_text_config())

    def predict_step(self, batch: PromptBatch, batch_idx: int = 0) -> list[Responses]:
        """The responses to each prompt; those of one prompt depend on the seed and its id alone."""
        group, width = self.responses_per_prompt, self.sampling.max_new_tokens
        numbers = [uniform_numbers((self._seed, "generate", p.prompt_id), group, width) for p in batch.prompts]
        if not numbers:
            return []
        generator = Generator(self.sampling, self._stop_ids, int(self.tokenizer.pad_token_id), self._tokens(1))
        ids = [prompt.ids for prompt in batch.prompts for _ in range(group)]
        with evaluating(self.policy):
            rollout = generator.sample(self.policy, "policy", ids, torch.cat(numbers).to(self.device))
        texts, ended = response_texts(self.tokenizer, rollout), rollout.has_ended.tolist()
        return [
            Responses(prompt.prompt_id, prompt.turns, texts[i : i + group], ended[i : i + group])
            for prompt, i in zip(batch.prompts, range(0, len(texts), group), strict=True)
        ]
