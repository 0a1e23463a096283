"""The RL stage as a LightningModule: PPO, RLOO or GRPO against the evolved reward model (SER, section 3.4)."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ser_lightning.data.packing import Tokens
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.models.adapter_reward import adapter_reward_model, can_share
from ser_lightning.models.backbone import Backbone
from ser_lightning.models.masks import LayoutName
from ser_lightning.models.policy import Policy, Role, load_policy
from ser_lightning.modules.policy_base import SamplingModule
from ser_lightning.records import Answers, Prompt, PromptBatch, Rollout, RolloutBatch
from ser_lightning.rl.experience import Estimator, Experience, PPOSettings, make_experience, measure, micro_batches
from ser_lightning.rl.policy_math import FixedKL, clipped_policy_loss, clipped_value_loss, kl_k3, sequence_kl
from ser_lightning.rl.reward_functions import RewardFunction, RewardSum
from ser_lightning.rl.reward_sources import load_rewards
from ser_lightning.rl.rollout import Sampling, response_logps, response_texts, response_values, uniform_numbers
from ser_lightning.training.schedule import make_optimizer
from ser_lightning.training.scoring import evaluating
from ser_lightning.utils.collectives import gather_over_ranks, sum_gradients, sum_over_ranks
from ser_lightning.utils.seeds import hash_seed

MEANS = ("reward", "kl", "kl_k3", "length", "eos_rate", "cut_share")
"""Figures of a step that are means over its responses."""
FIGURES = ("policy_loss", "entropy", "clip_fraction", "approx_kl", "value_loss")
"""Figures of an update that are means over its tokens."""


class PPOModule(SamplingModule):
    """Trains a language model to give responses that a reward model likes, without going far from where it started.

    Args:
        backbone: the policy: a pretrained model or the folder of a run of sft.yaml, and how it is trained, `lora` or
            `full`. With `lora`, reference, critic and a reward model on the same base are adapters on one base.
        reward_model: what is to rise: the run folder of a reward model, its export, or the dotted path of a function
            `(prompts, responses) -> scores`; several as {source: weight}.
        kl_control: weight of the KL penalty against the starting policy, fixed or adaptive.
        sampling: how the policy answers.
        ppo: how a step learns from its responses.
        judge: a second judge for the held-out prompts, which is not trained on; a source as for `reward_model`.
        allow_uncalibrated: take a reward model whose zero and temperature were never fitted.
        advantage: `gae` needs a critic; `rloo` and `grpo` compare the responses to one prompt and need none.
        responses_per_prompt: responses sampled to each prompt in a step.
        optimizer: class and arguments of the policy's optimiser; its learning rate stays the same.
        critic_optimizer: the critic's.
        max_grad_norm: gradients are clipped to this norm, those of policy and critic apart.
        tokens_per_batch: most tokens in a micro-batch of whole responses; changes memory and speed, never the result.
            `auto` fills the GPU's memory, as far as can be told, and is 1,536 on a CPU.
        tokens_per_sampling_batch: most tokens in a batch of responses that are being sampled; `auto` as above, 16,384
            on a CPU.
        layout: `shared_prompt` computes a prompt once for all responses to it, with the same result; `padded` gives
            each response a row; `auto` shares prompts where that is exact and, on a GPU,
            FlexAttention works, and logs why where it does not.
    """

    optimizer: OptimizerCallable

    stages = ("ppo.yaml",)

    def __init__(
        self,
        backbone: Backbone,
        reward_model: str | dict[str, float],
        kl_control: FixedKL,
        sampling: Sampling,
        ppo: PPOSettings,
        judge: str | None = None,
        allow_uncalibrated: bool = False,
        advantage: Estimator = "gae",
        responses_per_prompt: int = 1,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1.4e-5, weight_decay=0.0),
        critic_optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1.4e-5, weight_decay=0.0),
        max_grad_norm: float = 1.0,
        tokens_per_batch: Tokens = 4096,
        tokens_per_sampling_batch: Tokens = 16384,
        layout: LayoutName = "auto",
    ) -> None:
        super().__init__(backbone)
        problems = [*backbone.training_problems(), *sampling.problems(), *ppo.problems(advantage, responses_per_prompt)]
        limits: dict[str, Any] = {"max_grad_norm": max_grad_norm, "tokens_per_batch": tokens_per_batch}
        limits["tokens_per_sampling_batch"] = tokens_per_sampling_batch
        numbers = {k: value for k, value in limits.items() if value != "auto"}
        problems += [f"model.{k}: got {value}; need a positive number" for k, value in numbers.items() if value <= 0]
        raise_problems(problems)
        self.reward_model, self.judge = reward_model, judge
        self.kl_control, self.sampling, self.ppo = kl_control, sampling, ppo
        self.allow_uncalibrated = allow_uncalibrated
        self.advantage, self.responses_per_prompt = advantage, responses_per_prompt
        self.optimizer, self.critic_optimizer, self.max_grad_norm = optimizer, critic_optimizer, max_grad_norm
        self.tokens_per_batch, self.tokens_per_sampling_batch = tokens_per_batch, tokens_per_sampling_batch
        self._layout: LayoutName = layout
        self.rl_step = 0
        self.answers: Answers | None = None
        self.start_answers: Answers | None = None
        self._found: dict[Role, list[Answers]] = {}

    # The models.

    def _load_models(self, device: torch.device) -> Policy:
        """Policy, reference, critic and judges; `UserError` with the problems of all judges at once."""
        start = self.start
        policy = load_policy(start.backbone, device, start.weights, True, self._has_critic, self._layout)
        # In a list: registered as submodules, the reward models would enter checkpoints and optimisers.
        self._judges: list[tuple[RewardSum, RewardSum | None]] = [self._load_judges(policy, device)]
        return policy

    @property
    def rewards(self) -> dict[str, RewardFunction]:
        """What `reward_model` and `judge` name, by source; loaded by `configure_model`."""
        return {name: one for found in self._judges[0] if found is not None for name, one in found.functions.items()}

    def _load_judges(self, policy: Policy, device: torch.device) -> tuple[RewardSum, RewardSum | None]:
        def build(run: Any) -> nn.Module | None:
            """A reward model on the policy's base takes no second base."""
            if not can_share(self.start.backbone, run.backbone):
                return None
            number = sum(name.startswith("reward") for name in getattr(policy.body, "peft_config", {}))
            place = policy, run.backbone, run.weights, f"reward{number}"
            return adapter_reward_model(*place, run.reading, run.identity)

        problems: list[str] = []
        try:
            rewards = load_rewards(self.reward_model, device, self.allow_uncalibrated, build)
        except UserError as error:
            problems += error.problems
        try:
            judge = load_rewards(self.judge, device, allow_uncalibrated=True, build=build) if self.judge else None
        except UserError as error:
            problems += error.problems
        raise_problems(problems)
        return rewards, judge

    @property
    def token_settings(self) -> tuple[Tokens, Tokens]:
        """Of a micro-batch, and of a batch that is being sampled."""
        return self.tokens_per_batch, self.tokens_per_sampling_batch

    @property
    def models_beside(self) -> list[nn.Module]:
        """The reward models; one on the policy's base is part of that."""
        return [model for judge in self._judges[0] if judge is not None for model in judge.models]

    @property
    def _has_critic(self) -> bool:
        return self.advantage == "gae"

    # A step: respond, judge, learn.

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One step: sample responses, score them, and update policy and critic several times."""
        raise_problems(self.step_problems(batch.num_step_prompts))
        num_responses = batch.num_step_prompts * self.responses_per_prompt
        torch.manual_seed(hash_seed(self._seed, "dropout", batch.step, self.global_rank))
        with evaluating(self.policy):
            experience, score = self._collect(batch)
        means = self._means(experience, score, self._judges[0][0].num_cut)
        # All figures of the step come to the host at once, after its last update.
        values = torch.cat([means, self._update(experience, batch)]).tolist()
        figures = dict(zip((*MEANS, *FIGURES), values, strict=True)) | {"kl_weight": self.kl_control.weight}
        if not self._has_critic:
            del figures["value_loss"]
        for name, value in figures.items():
            is_shown = name in ("reward", "kl", "length")
            self.log(f"train/{name}", torch.tensor(value), prog_bar=is_shown, batch_size=1, on_step=True)
        self.kl_control.update(figures["kl"], num_responses)
        self.rl_step = batch.step + 1

    def step_problems(self, num_prompts: int) -> list[str]:
        """What is wrong with a step of so many prompts."""
        num_responses = num_prompts * self.responses_per_prompt
        found = self.kl_control.problems(num_responses)
        if self.ppo.minibatches > num_responses:
            got = f"got {self.ppo.minibatches} for {num_responses} responses in a step"
            found.append(f"ppo.minibatches: {got}; use at most as many")
        return found

    def _collect(self, batch: PromptBatch) -> tuple[Experience, Tensor]:
        """Responses of the current policy with their advantages, and their scores (R,) on the CPU."""
        group = self.responses_per_prompt
        prompts = [prompt for prompt in batch.prompts for _ in range(group)]
        numbers = uniform_numbers(
            (self._seed, "train", batch.step), batch.num_step_prompts * group, self.sampling.max_new_tokens
        )
        rollout = self._respond("policy", prompts, numbers[self._places_in_step(batch)])
        # The device is busy with this while the host encodes the responses for the reward model.
        found = measure(self.policy, rollout, self.sampling.temperature, self._tokens(0), self._has_critic)
        reward = self._judges[0][0]([prompt.turns for prompt in prompts], response_texts(self.tokenizer, rollout))
        score = reward - self.ppo.missing_eos_penalty * (~rollout.has_ended).float()
        weight = self.kl_control.weight
        return make_experience(rollout, score, *found, weight, self.advantage, group, self.ppo), reward

    def _places_in_step(self, batch: PromptBatch) -> list[int]:
        """Where the responses of this rank stand among those of the whole step."""
        group = self.responses_per_prompt
        return [position * group + k for position in batch.positions for k in range(group)]

    def _respond(self, role: Role, prompts: Sequence[Prompt], numbers: Tensor) -> Rollout:
        return self.generator.sample(self.policy, role, [prompt.ids for prompt in prompts], numbers.to(self.device))

    def _update(self, experience: Experience, batch: PromptBatch) -> Tensor:
        """The updates of a step; (5,) float64, the mean of `FIGURES` over them.

        Minibatches are cut over the responses of all ranks, so they do not depend on the number of ranks.
        """
        sums = torch.zeros(len(FIGURES), dtype=torch.float64, device=self.device)
        generator = torch.Generator().manual_seed(hash_seed(self._seed, "minibatches", batch.step))
        row_at = {place: row for row, place in enumerate(self._places_in_step(batch))}
        num_responses = batch.num_step_prompts * self.responses_per_prompt
        for _ in range(self.ppo.epochs):
            order = torch.randperm(num_responses, generator=generator).numpy()
            for places in np.array_split(order, self.ppo.minibatches):
                rows = [row_at[place] for place in places.tolist() if place in row_at]
                sums += self._update_once(experience, np.array(rows, dtype=np.int64))
        return sums / (self.ppo.epochs * self.ppo.minibatches)

    def _update_once(self, experience: Experience, rows: np.ndarray) -> Tensor:
        """One optimiser step of policy and critic on some rows; (5,) float64, `FIGURES` as means over their tokens."""
        rollout = experience.rollout
        own_tokens = float(rollout.response_mask.numpy()[rows].sum())
        num_tokens = sum_over_ranks(torch.full((), own_tokens, device=self.device))
        sums = torch.zeros(len(FIGURES), dtype=torch.float64, device=self.device)
        model = self.trainer.strategy.model
        # Ranks sum their gradients at the end, however many micro-batches each of them had.
        with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
            for part in micro_batches(rollout, rows, self._tokens(0), self.policy.layout, self.device):
                figures = self._policy_backward(experience, part, num_tokens)
                if self._has_critic:
                    figures.append(self._critic_backward(experience, part, num_tokens))
                sums[: len(figures)] += torch.stack([value.double() for value in figures])
        self._optimizer_steps()
        return sum_over_ranks(sums) / num_tokens

    def _policy_backward(self, experience: Experience, part: RolloutBatch, num_tokens: Tensor) -> list[Tensor]:
        """Gradients of the policy's loss on a micro-batch; all of `FIGURES` but the last, as sums over its tokens."""
        old_logp, advantage = (x.flatten()[part.table_places] for x in (experience.logp, experience.advantage))
        with self.policy.in_role("policy"):
            logp, entropy = response_logps(self.policy, "policy", part, self.sampling.temperature)
            loss, num_clipped = clipped_policy_loss(logp, old_logp, advantage, self.ppo.clip_range)
            self.manual_backward(loss / num_tokens)
        approx_kl = kl_k3(old_logp, logp.detach()).sum()
        return [x.detach() for x in (loss, entropy.sum(), num_clipped, approx_kl)]

    def _critic_backward(self, experience: Experience, part: RolloutBatch, num_tokens: Tensor) -> Tensor:
        """Gradients of the critic's loss on a micro-batch; its sum over the tokens."""
        assert experience.value is not None and experience.returns is not None
        old, target = (x.flatten()[part.table_places] for x in (experience.value, experience.returns))
        with self.policy.in_role("critic"):
            value = response_values(self.policy, part)
            loss = clipped_value_loss(value, old, target, self.ppo.value_clip_range)
            self.manual_backward(loss / num_tokens)
        return loss.detach()

    def _optimizer_steps(self) -> None:
        """Clip, check and step; that the norms are read is the one time in an update that the host waits."""
        optimizers = self.optimizers() if self._has_critic else [self.optimizers()]
        roles: tuple[Role, ...] = ("policy", "critic") if self._has_critic else ("policy",)
        norms = []
        for role in roles:
            parameters = self.policy.parameters_of(role)
            sum_gradients(parameters)
            norms.append(nn.utils.clip_grad_norm_(parameters, self.max_grad_norm).double())
        for role, norm in zip(roles, torch.stack(norms).tolist(), strict=True):
            if not math.isfinite(norm):  # of the gradients of all ranks, so all of them stop here
                name = "optimizer" if role == "policy" else "critic_optimizer"
                raise UserError(
                    f"train: got a gradient norm of {norm} for the {role} in step {self.rl_step}; lower "
                    f"model.{name}.init_args.lr, or look for the cause with --config debug/anomaly.yaml"
                )
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def _means(self, experience: Experience, reward: Tensor, num_cut: int) -> Tensor:
        """(6,) float64 `MEANS` over the responses of all ranks; `num_cut` of this one's were too long for the judge."""
        rollout, mask = experience.rollout, experience.response_mask
        k3 = kl_k3(experience.logp, experience.logp - experience.kl)
        of_tables = torch.stack([sequence_kl(x, mask).double().sum() for x in (experience.kl, k3)])
        lengths, ended = rollout.response_mask.numpy().sum(), rollout.has_ended.numpy().sum()
        known = (reward.double().numpy().sum(), lengths, ended, num_cut, len(rollout))
        counts = torch.tensor(known, dtype=torch.float64).to(self.device, non_blocking=True)
        totals = sum_over_ranks(torch.cat([counts[:1], of_tables, counts[1:]]))
        return totals[:-1] / totals[-1]

    # Held-out prompts.

    def on_validation_epoch_start(self) -> None:
        """The starting policy answers once; afterwards only the current one does."""
        self._found = {"policy": []} if self.start_answers is not None else {"policy": [], "reference": []}

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Answer held-out prompts, with the same random numbers each time and for both policies."""
        if not batch.prompts:
            return
        numbers = uniform_numbers((self._seed, "val"), batch.num_step_prompts, self.sampling.max_new_tokens)
        for role, found in self._found.items():
            found.append(self._answer(role, batch.prompts, numbers[batch.positions]))

    def _answer(self, role: Role, prompts: list[Prompt], numbers: Tensor) -> Answers:
        rollout = self._respond(role, prompts, numbers)
        logp, ref_logp, _ = measure(self.policy, rollout, self.sampling.temperature, self._tokens(0))
        kl = (logp - ref_logp).sum(-1) if role == "policy" else torch.zeros(len(rollout))
        turns, texts = [prompt.turns for prompt in prompts], response_texts(self.tokenizer, rollout)
        rewards, judge = self._judges[0]
        return Answers(
            prompt_id=torch.tensor([prompt.prompt_id for prompt in prompts]),
            prompts=[prompt.turns[-1]["content"] for prompt in prompts],
            responses=texts,
            reward=rewards(turns, texts),
            judge=judge(turns, texts) if judge else None,
            kl=kl.cpu(),
            num_tokens=rollout.num_response_tokens,
            has_ended=rollout.has_ended,
        )

    def on_validation_epoch_end(self) -> None:
        """Bring the ranks' answers together and log their means."""
        found = {role: _joined(gather_over_ranks(parts)) for role, parts in self._found.items()}
        self._found = {}
        is_glance = self.trainer.sanity_checking and self.trainer.num_sanity_val_steps != math.inf
        if self.start_answers is None and not is_glance:  # of fewer prompts than later validations have
            self.start_answers = found.get("reference")
        self.answers = found["policy"]
        columns = {"reward": self.answers.reward, "kl": self.answers.kl, "length": self.answers.num_tokens.float()}
        if self.answers.judge is not None:
            columns["judge_score"] = self.answers.judge
        for name, column in columns.items():
            # For the progress bar and for what monitors a figure; `PolicyWatch` tells the loggers, at the right step.
            # It is of all ranks already; Lightning would warn that it is not.
            is_shown, mean = name in ("reward", "judge_score"), float(column.mean())
            self.log(f"val/{name}", mean, prog_bar=is_shown, logger=False, sync_dist=True)

    # Optimisers and checkpoints.

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The injected optimisers, the critic's only where there is one."""
        made = [make_optimizer(self.optimizer, self.policy.parameters_of("policy"), "model.optimizer")]
        if self._has_critic:
            parameters = self.policy.parameters_of("critic")
            made.append(make_optimizer(self.critic_optimizer, parameters, "model.critic_optimizer"))
        return made

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The KL weight and the number of steps belong to the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["rl"] = {"step": self.rl_step, "kl_control": self.kl_control.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        super().on_load_checkpoint(checkpoint)
        self.rl_step = checkpoint["rl"]["step"]
        self.kl_control.load_state_dict(checkpoint["rl"]["kl_control"])


def _joined(by_rank: list[list[Answers]]) -> Answers:
    """The answers of all ranks in the order of their prompt ids."""
    parts = [part for parts in by_rank for part in parts]
    order = torch.cat([part.prompt_id for part in parts]).argsort(stable=True)

    def joined(name: str) -> Any:
        columns = [getattr(part, name) for part in parts]
        if columns[0] is None:
            return None
        if isinstance(columns[0], Tensor):
            return torch.cat(columns)[order]
        texts = [text for column in columns for text in column]
        return [texts[i] for i in order.tolist()]

    return Answers(**{field.name: joined(field.name) for field in fields(Answers)})
