"""Supervised fine-tuning as a LightningModule: where the policy starts from, and in the paper the reward model too."""

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from ser_lightning.errors import raise_problems
from ser_lightning.models.backbone import Backbone
from ser_lightning.modules.policy_base import PolicyModule
from ser_lightning.records import ResponseBatch
from ser_lightning.rl.policy_math import token_logps
from ser_lightning.rl.rollout import LOGP_CHUNK
from ser_lightning.training.optim_step import log_on_host, synchronised, training_problems, update
from ser_lightning.training.schedule import Decay, lr_factor, make_optimizer
from ser_lightning.utils.collectives import sum_over_ranks
from ser_lightning.utils.seeds import hash_seed


class SFTModule(PolicyModule):
    """Imitates responses: the loss is the mean negative log-probability of their tokens, the prompt's do not count.

    Args:
        backbone: the pretrained model and how it is trained, `lora` or `full`; its path may be the folder of a run of
            sft.yaml or ppo.yaml.
        optimizer: class and arguments of the optimiser; its learning rate is the peak of the schedule.
        lr_decay: `linear` falls to 0 over the fit, `none` stays.
        warmup_share: share of the steps over which the learning rate rises from 0.
        max_grad_norm: gradients are clipped to this norm.
    """

    use = "sft"
    stages = ("sft.yaml",)
    optimizer: OptimizerCallable

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.0),
        lr_decay: Decay = "linear",
        warmup_share: float = 0.1,
        max_grad_norm: float = 1.0,
    ) -> None:
        super().__init__(backbone)
        raise_problems([*backbone.training_problems(), *training_problems(lr_decay, warmup_share, max_grad_norm)])
        self.optimizer = optimizer
        self.lr_decay, self.warmup_share, self.max_grad_norm = lr_decay, warmup_share, max_grad_norm
        self._val_sums = torch.zeros(2, dtype=torch.float64)

    def forward(self, batch: ResponseBatch) -> Tensor:
        """(N,) float32 log-probabilities of the N response tokens of a batch, row by row."""
        states = self.policy.hidden("policy", batch.inputs).flatten(0, 1)[batch.response_places - 1]
        ids = batch.inputs.input_ids.flatten()[batch.response_places]
        return token_logps(states, self.policy.head("policy"), ids, 1.0, LOGP_CHUNK)[0]

    def training_step(self, step: list[ResponseBatch], batch_idx: int) -> None:
        """One optimiser step over its micro-batches: sum over the response tokens over their number on all ranks."""
        optimizer = self.optimizers()
        num_steps = self.trainer.estimated_stepping_batches  # up to max_epochs or max_steps, whichever comes first
        done = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        # A resumed run drops out what the unbroken one does.
        torch.manual_seed(hash_seed(self._seed, "dropout", done, self.global_rank))
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_factor(done, num_steps, self.warmup_share, self.lr_decay)
        sum_of_losses = torch.zeros((), dtype=torch.float64, device=self.device)
        for i, batch in enumerate(step):
            with synchronised(self, is_last=i == len(step) - 1):
                loss = -self(batch).sum() / batch.num_step_tokens
                # Ranks average their gradients, but the loss is a sum over all ranks' tokens.
                self.manual_backward(loss * self.trainer.world_size)
            sum_of_losses += loss.detach().double() * self.trainer.world_size
        [total] = update(self, self.policy.parameters_of("policy"), self.max_grad_norm, [sum_of_losses], batch_idx)
        log_on_host(self, "train/loss", total, batch_size=1)

    def validation_step(self, batch: ResponseBatch, batch_idx: int) -> None:
        """Add up log-probabilities and tokens."""
        logps = self(batch).double()
        self._val_sums = self._val_sums.to(logps.device) + torch.stack([logps.sum(), logps.new_tensor(len(logps))])

    def on_validation_epoch_end(self) -> None:
        """Log the mean negative log-probability of a token, exact over batches and ranks."""
        total, num_tokens = sum_over_ranks(self._val_sums).tolist()
        self._val_sums.zero_()
        if num_tokens:
            self.log("val/loss", -total / num_tokens, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The injected optimiser over everything that is trained."""
        return make_optimizer(self.optimizer, self.policy.parameters_of("policy"), "model.optimizer")
