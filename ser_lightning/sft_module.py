"""Supervised fine-tuning as a LightningModule: where the policy starts from, and in the paper the reward model too."""

import math
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedTokenizerBase

from ser_lightning.backbone import Backbone, load_tokenizer
from ser_lightning.collectives import sum_over_ranks
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.policy import Policy, load_policy
from ser_lightning.policy_math import token_logps
from ser_lightning.policy_run import PolicyStart, resolve_start
from ser_lightning.records import ResponseBatch
from ser_lightning.rollout import LOGP_CHUNK
from ser_lightning.schedule import Decay, lr_factor, make_optimizer
from ser_lightning.seeds import hash_seed


class SFTModule(LightningModule):
    """Imitates responses: the loss is the mean negative log-probability of their tokens, the prompt's do not count.

    Args:
        backbone: the pretrained model and how it is trained, `lora` or `full`; its path may be the folder of a run of
            sft.yaml or ppo.yaml.
        optimizer: class and arguments of the optimiser; its learning rate is the peak of the schedule.
        lr_decay: `linear` falls to 0 over the fit, `none` stays.
        warmup_share: share of the steps over which the learning rate rises from 0.
        max_grad_norm: gradients are clipped to this norm.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.0),
        lr_decay: Decay = "linear",
        warmup_share: float = 0.1,
        max_grad_norm: float = 1.0,
    ) -> None:
        super().__init__()
        problems = backbone.problems()
        if not 0 <= warmup_share < 1:
            problems.append(f"model.warmup_share: got {warmup_share}; need a share in [0, 1)")
        if max_grad_norm <= 0:
            problems.append(f"model.max_grad_norm: got {max_grad_norm}; need a positive number")
        raise_problems(problems)
        self.automatic_optimization = False
        self.strict_loading = False
        self.backbone, self.optimizer = backbone, optimizer
        self.lr_decay, self.warmup_share, self.max_grad_norm = lr_decay, warmup_share, max_grad_norm
        self._start: PolicyStart | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._policy: Policy | None = None
        self._val_sums = torch.zeros(2, dtype=torch.float64)

    @property
    def start(self) -> PolicyStart:
        """What is trained on: a pretrained model, or what another run has made of one."""
        if self._start is None:
            self._start = resolve_start(self.backbone)
        return self._start

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """With a pad token and a chat template."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.start.backbone)
        return self._tokenizer

    @property
    def policy(self) -> Policy:
        """The model itself; loaded by `configure_model`."""
        if self._policy is None:
            raise RuntimeError("the model is loaded in configure_model(), which the trainer calls")
        return self._policy

    def configure_model(self) -> None:
        """Load the pretrained weights, on the device where 4-bit weights have to be made."""
        if self._policy is None:
            self._seed = torch.initial_seed()
            device = self.trainer.strategy.root_device if self._trainer is not None else self.device
            self._policy = load_policy(self.start.backbone, device, self.start.weights)

    def forward(self, batch: ResponseBatch) -> Tensor:
        """(N,) float32 log-probabilities of the N response tokens of a batch, row by row."""
        hidden = self.policy.hidden("policy", batch.input_ids, batch.attention_mask)
        is_next = batch.response_mask[:, 1:]
        states, ids = hidden[:, :-1][is_next], batch.input_ids[:, 1:][is_next]
        return token_logps(states, self.policy.head("policy"), ids, 1.0, LOGP_CHUNK)[0]

    def training_step(self, step: list[ResponseBatch], batch_idx: int) -> None:
        """One optimiser step over its micro-batches: sum over the response tokens over their number on all ranks."""
        optimizer = self.optimizers()
        num_steps = max(1, self.trainer.max_epochs or 1) * int(self.trainer.num_training_batches)
        done = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        # A resumed run drops out what the unbroken one does.
        torch.manual_seed(hash_seed(self._seed, "dropout", done, self.global_rank))
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_factor(done, num_steps, self.warmup_share, self.lr_decay)
        total = 0.0
        for i, batch in enumerate(step):
            model = self.trainer.strategy.model
            is_waiting = isinstance(model, DistributedDataParallel) and i < len(step) - 1
            with model.no_sync() if is_waiting else nullcontext():
                loss = -self(batch).sum() / batch.num_step_tokens
                # Ranks average their gradients, but the loss is a sum over all ranks' tokens.
                self.manual_backward(loss * self.trainer.world_size)
            total += float(loss.detach()) * self.trainer.world_size
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.parameters_of("policy"), self.max_grad_norm))
        if not math.isfinite(norm):
            raise UserError(
                f"train/loss: got {total}, gradient norm {norm}, epoch {self.current_epoch}, step {batch_idx}; lower "
                "model.optimizer.init_args.lr, or look for the cause with --config debug/anomaly.yaml"
            )
        optimizer.step()
        optimizer.zero_grad()
        self.log("train/loss", total, prog_bar=True, batch_size=1, on_step=True)

    def validation_step(self, batch: ResponseBatch, batch_idx: int) -> None:
        """Add up log-probabilities and tokens."""
        logps = self(batch).double()
        self._val_sums = self._val_sums.to(logps.device) + torch.stack([logps.sum(), logps.new_tensor(len(logps))])

    def on_validation_epoch_end(self) -> None:
        """Log the mean negative log-probability of a token, exact over batches and ranks."""
        total, num_tokens = sum_over_ranks(self._val_sums).tolist()
        self._val_sums.zero_()
        if num_tokens:
            self.log("val/loss", -total / num_tokens, prog_bar=True, rank_zero_only=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The injected optimiser over everything that is trained."""
        return make_optimizer(self.optimizer, self.policy.parameters_of("policy"), "model.optimizer")

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Adapters (or every weight, where all are trained), never the frozen base."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in trained}

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` gave; a missing adapter is an error."""
        self.policy.load_trainable_state({k.removeprefix("_policy."): v for k, v in state_dict.items()})
        return torch.nn.modules.module._IncompatibleKeys([], [])
