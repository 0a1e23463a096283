"""The reward model as a LightningModule: a thin shell around `reward_model.RewardModel` and `losses`."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from ser_lightning.data.layouts import Layout
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.evaluation.metrics import PairMetrics, half_credit
from ser_lightning.evolution.comparison_states import cache_comparisons, comparison_length
from ser_lightning.evolution.pairwise_judge import PairwiseJudge
from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.models.fingerprint import Identity, check_identity, check_stage, check_trained, identity_of
from ser_lightning.models.masks import LayoutName
from ser_lightning.models.probe import Finding, start_findings
from ser_lightning.models.readings import QUESTION
from ser_lightning.models.reward_model import RewardModel, load_reward_model
from ser_lightning.models.trainable import trainable_state, trained_part
from ser_lightning.records import Features, PairBatch, PairScores
from ser_lightning.runs.reward_run import MODULE_PREFIX
from ser_lightning.training.linear_head import curvature_root, fit_linear_head, log_loss
from ser_lightning.training.losses import bradley_terry, centring
from ser_lightning.training.optim_step import log_on_host, synchronised, training_problems, update
from ser_lightning.training.own_answer import answer_direction
from ser_lightning.training.reading_choice import (
    ReadingPlan,
    joined_differences,
    measure_readings,
    own_differences,
    plan_readings,
    question_length,
)
from ser_lightning.training.schedule import Decay, lr_factor, make_optimizer, peak_rate
from ser_lightning.training.strategies import ShardStrategy, check_optimizer, check_strategy, strategy_kind
from ser_lightning.utils.collectives import gather_over_ranks, own_part


class RewardModule(LightningModule):
    """Scores responses, and learns to from pairs (SER, section 3.1).

    Args:
        backbone: the pretrained body and how it is trained.
        optimizer: class and arguments of the optimiser; its learning rate is the peak of each phase's schedule.
        lr_decay: `linear` falls to 0 over a phase (the paper's), `none` stays.
        warmup_share: share of a phase's steps over which the learning rate rises from 0.
        center_rewards_coefficient: weight of the loss that pulls the mean reward of a pair to 0.
        max_grad_norm: gradients are clipped to this norm.
        reading: where the head of a decoder reads, a list of `last`, `mean` and `judge`, each alone or with a layer
            such as `mean@12`; `auto` chooses out of fold on the seed, `last` is the standard reward model; see
            docs/method.md.
        question: what the reading `judge` asks about a response.
        pairwise_judge: let the model compare both responses of each pair in one prompt, and help to label the pool
            where the seed says that this makes better labels; costs some three passes over all pairs, once.
        layout: `shared_prompt` computes the prompt of both responses once, with the same result; `padded` gives each
            response a row; `auto` shares prompts where that is exact and, on a GPU,
            FlexAttention works, and logs why where it does not.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.0),
        lr_decay: Decay = "linear",
        warmup_share: float = 0.1,
        center_rewards_coefficient: float = 0.01,
        max_grad_norm: float = 1.0,
        layout: LayoutName = "auto",
        reading: str | list[str] = "auto",
        question: str = QUESTION,
        pairwise_judge: bool = False,
    ) -> None:
        super().__init__()
        problems = [*backbone.training_problems(), *training_problems(lr_decay, warmup_share, max_grad_norm)]
        if not center_rewards_coefficient >= 0:
            problems.append(f"model.center_rewards_coefficient: got {center_rewards_coefficient}; need 0 or more")
        raise_problems(problems)
        # A step is cut into as many micro-batches as its tokens need, which automatic optimisation cannot do.
        self.automatic_optimization = False
        # A checkpoint holds what was trained; load_state_dict checks that all of it is there.
        self.strict_loading = False
        self.backbone, self.optimizer = backbone, optimizer
        self.lr_decay, self.warmup_share = lr_decay, warmup_share
        self.center_rewards_coefficient, self.max_grad_norm = center_rewards_coefficient, max_grad_norm
        self._wanted_layout: LayoutName = layout
        self.reading, self.question = reading, question
        self.compares = pairwise_judge
        self.judge: PairwiseJudge | None = None
        self.penalty: float | None = None
        self._root: Tensor | None = None
        self._evidence: list[dict[str, Any]] = []
        self.answer_accuracy: float | None = None
        self.temperature, self.zero = 1.0, 0.0
        self._reward_model: RewardModel | None = None
        self._identity: Identity | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._initial_state: dict[str, Tensor] = {}
        self._phase_epochs: tuple[int, int] | None = None
        self.metrics = PairMetrics()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """With a pad token and a chat template."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.backbone)
        return self._tokenizer

    @property
    def reward_model(self) -> RewardModel:
        """The model itself; loaded by `configure_model`."""
        if self._reward_model is None:
            raise RuntimeError("the model is loaded in configure_model(), which the trainer calls")
        return self._reward_model

    def start_findings(self, max_length: int | None) -> list[Finding]:
        """What the data module is told before it encodes anything, see `models/probe.py`."""
        num_question = question_length(self.tokenizer, self.reading, self.question)
        is_optional, rate = self.reading in ("auto", ["auto"]), peak_rate(self.optimizer)
        return start_findings(self.backbone, self.tokenizer, "reward", max_length, num_question, is_optional, rate)

    def setup(self, stage: str) -> None:
        """Refuse strategies that cannot train this, then load.

        Where Lightning itself calls `configure_model`, every operation passes through its torch-function modes, and
        passes over pairs would be slow.
        """
        check_strategy(self.trainer, self.backbone.train, self.backbone.quantize)
        self._root = None  # of other pairs, perhaps
        self.configure_model()

    @property
    def layout(self) -> Layout:
        """How the data module is to lay out pairs, once the model is loaded."""
        return self.reward_model.layout

    def configure_model(self) -> None:
        """Load the pretrained weights, on the device where 4-bit weights have to be made."""
        if self._reward_model is not None:
            return
        device = self.trainer.strategy.root_device if self._trainer is not None else self.device
        self._reward_model = load_reward_model(self.backbone, device, self._wanted_layout, "model.layout")
        self._identity = identity_of(self._reward_model.model, self.tokenizer)
        self._compare_responses(self._reward_model)
        self._choose_readings(self._reward_model)
        if self._trainer is not None and isinstance(self.trainer.strategy, ShardStrategy):
            self.trainer.strategy.shard(self, self._reward_model.body)
        trained = trainable_state(self._reward_model)
        self._initial_state = {name: own_part(p).cpu().clone() for name, p in trained.items()}

    def _choose_readings(self, reward_model: RewardModel) -> None:
        """Where to read: what the setting says, or what `auto` finds; a checkpoint knows without asking again."""
        data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        max_length = getattr(data, "max_length", None)
        plan = plan_readings(reward_model, self.tokenizer, self.reading, self.question, max_length)
        if not reward_model.is_decoder:
            return
        is_start = self._trainer is not None and self.trainer.state.fn == "fit" and self.trainer.ckpt_path is None
        asks = is_start and plan.can_choose(self.trainer)
        if is_start and (self.solves_exactly or asks):
            reward_model.to(self.trainer.strategy.root_device)
        answer = self._own_answer(plan) if asks else None
        choice, known = plan.choose(self.trainer, reward_model, answer) if asks else (None, None)
        readings = plan.usual if choice is None else choice.chosen.readings
        reward_model.read_as(self.tokenizer, map(str, readings), self.question)
        if is_start or not plan.is_open:  # else a checkpoint will say what is read
            reward_model.drop_unread_layers()
        if is_start and self.solves_exactly:
            if known is not None:
                self.trainer.datamodule.cache_features(known)
            found = measure_readings(self.trainer, reward_model)
            self.penalty = found.chosen.penalty
            choice = found if choice is None else choice.measured_as(found.chosen)
        if choice is not None:
            self._evidence, self.answer_accuracy = choice.evidence(), choice.answer_accuracy
            rank_zero_info(f"Reading: the head {choice.sentence()}.")
            if choice.answer_accuracy is not None:
                own = f"{choice.answer_accuracy:.3f} of the seed right, and needs no label"
                rank_zero_info(f"Baseline: the model's own answer to whether a response is good has {own}.")

    def _own_answer(self, plan: ReadingPlan) -> Tensor | None:
        """The head that is the language model's own answer, a baseline that the pass over the seed measures as well."""
        if not plan.tokens.question:
            return None
        try:
            return answer_direction(self.backbone, self.tokenizer, may_load=False)
        except UserError as error:
            rank_zero_info(f"Baseline: the model's own answer is not measured, as {error}.")
            return None

    def _compare_responses(self, reward_model: RewardModel) -> None:
        """Have the pretrained body compare the responses of every pair, while it still has all of its layers."""
        if not self.compares or self._trainer is None or self.trainer.state.fn != "fit":
            return
        self.check_judge(reward_model)
        data = self.trainer.datamodule
        if not hasattr(data, "part_ids"):
            raise UserError("model.pairwise_judge: got true without a PreferenceDataModule, whose pairs it compares")
        max_length = comparison_length(reward_model, data.max_length)
        reward_model.to(self.trainer.strategy.root_device)
        self.judge = PairwiseJudge(*cache_comparisons(self.trainer, reward_model, self.tokenizer, data, max_length))

    def check_judge(self, reward_model: RewardModel) -> None:
        """`UserError` for a pairwise judge that the model cannot be."""
        if self.compares and not reward_model.is_decoder:
            raise UserError("model.pairwise_judge: got true for an encoder, which cannot be asked; set it to false")

    @property
    def caches_features(self) -> bool:
        """Whether the states that the head reads never change, so that the data module may compute each pair once."""
        return self.backbone.train == "head"

    @property
    def solves_exactly(self) -> bool:
        """Whether a phase is one step that solves a linear head, in place of epochs of an optimiser."""
        if self.backbone.train != "head" or not self.reward_model.is_decoder:
            return False
        return self._trainer is None or strategy_kind(self.trainer.strategy) in ("auto", "ddp")

    def restart(self) -> None:
        """Put the weights back to where training started: pretrained body, new adapters and head."""
        for name, p in trainable_state(self.reward_model).items():
            own_part(p).copy_(self._initial_state[name])

    def forward(self, batch: PairBatch) -> PairScores:
        """Rewards of both responses of every pair."""
        reward_a, reward_b = self.reward_model(batch.inputs).split(batch.num_pairs)
        return PairScores(batch.pair_id, reward_a, reward_b, *self.num_tokens(batch).split(batch.num_pairs))

    def num_tokens(self, batch: PairBatch) -> Tensor:
        """(2B,) int64, tokens of prompt and response of each sequence; the question of `judge` is no part of them."""
        appended = 0 if isinstance(batch.inputs, Features) else len(self.layout.question)
        return batch.inputs.num_tokens - appended

    def set_scale(self, temperature: float, zero: float) -> None:
        """What a reward means, fitted on out-of-fold scores of the seed: P(a wins) = sigmoid(margin / temperature)."""
        self.temperature, self.zero = temperature, zero

    def pair_loss(self, scores: PairScores, target: Tensor) -> Tensor:
        """(B,) Bradley-Terry plus the anchor of the zero."""
        a, b = scores.reward_a, scores.reward_b
        return bradley_terry(a, b, target) + self.center_rewards_coefficient * centring(a, b)

    def begin_phase(self, first_epoch: int, num_epochs: int) -> None:
        """The learning-rate schedule runs over these epochs; without this call, over the whole fit."""
        self._phase_epochs = first_epoch, num_epochs

    def training_step(self, step: list[PairBatch], batch_idx: int) -> None:
        """One optimiser step over its micro-batches: sum of the pairs' losses over the number of pairs of all ranks."""
        if self.solves_exactly:
            self._solve(step)
            return
        optimizer = self.optimizers()
        factor = self._current_lr_factor(batch_idx)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # the loss, pairs that are right, pairs
        for i, batch in enumerate(step):
            with synchronised(self, is_last=i == len(step) - 1):
                scores = self(batch)
                loss = (self.pair_loss(scores, batch.target) * batch.weight).sum() / batch.num_step_pairs
                # Ranks average their gradients, but the loss is a sum over all ranks' pairs.
                self.manual_backward(loss * self.trainer.world_size)
            real = batch.weight > 0
            num_right = (half_credit(scores.margin.detach(), batch.target) * real).sum()
            summands = loss.detach() * self.trainer.world_size, num_right, real.sum()
            sums += torch.stack([summand.double() for summand in summands])
        trained = [p for p in self.parameters() if p.requires_grad]
        total, total_right, num_real = update(self, trained, self.max_grad_norm, list(sums), batch_idx)
        log_on_host(self, "train/loss", total, int(num_real))
        log_on_host(self, "train/accuracy", total_right / max(1, num_real), int(num_real))

    @torch.no_grad()
    def _solve(self, step: list[PairBatch]) -> None:
        """All pairs of the phase in one step: the head that minimises their loss, see `linear_head`."""
        found = gather_over_ranks(own_differences(self.reward_model, step))
        pair_id, differences, target, scale = joined_differences(found, len(self.reward_model.readings))
        if self.penalty is None:  # else it is chosen in `configure_model`, or comes with the checkpoint
            raise UserError(
                "checkpoint: got one without the penalty of its head, of another version of ser-lightning or another "
                "strategy; go on with that one, or start a new run"
            )
        if len(pair_id) >= len(scale) and self._root is None:  # with fewer pairs a root costs more than it saves
            self._root = curvature_root(self.trainer.datamodule.scaled_differences(), self.penalty)
        root = self._root if len(pair_id) >= len(scale) else None
        weight = fit_linear_head(differences / scale, target, self.penalty, root)
        # Every rank has solved the same; one answer for all, as their libraries may round differently.
        weight = self.trainer.strategy.broadcast(weight)
        self.reward_model.model.score.weight.copy_((weight / scale)[None])
        margin = differences.double() @ (weight / scale)
        self.optimizers().step()  # its learning rate is 0: it counts the step, by which checkpoints go
        log_on_host(self, "train/loss", float(log_loss(margin, target).mean()), len(pair_id))
        log_on_host(self, "train/accuracy", float(half_credit(margin, target).mean()), len(pair_id))

    def predict_step(self, batch: PairBatch, batch_idx: int = 0) -> PairScores:
        """Self-labelling: rewards in float32 logits."""
        return self(batch)

    def validation_step(self, batch: PairBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, PairScores]:
        """Score; pairs of a split count for its figures, those of a named set are `EvaluationCallback`'s."""
        scores: PairScores = self(batch)
        if batch.eval_set is None:
            self.metrics.update(scores, batch.target, batch.dialogue, batch.weight)
        return {"scores": scores}

    def test_step(self, batch: PairBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, PairScores]:  # type: ignore[override]
        """As in validation."""
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the validation pairs."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the figures of the test pairs."""
        self._log_metrics("test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The injected optimiser over everything that is trained."""
        trained = [p for p in self.parameters() if p.requires_grad]
        if self.solves_exactly:
            rank_zero_info(
                "Head: solved exactly in each phase; optimizer, epochs and pairs_per_step have no part in it."
            )
            return torch.optim.SGD(trained, lr=0.0)
        optimizer = make_optimizer(self.optimizer, trained, "model.optimizer")
        check_optimizer(optimizer, any(isinstance(p, DTensor) for p in trained), "model.optimizer")
        return optimizer

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Adapters and head (or every weight, where all are trained), never the frozen base."""
        return trained_part(self, super().state_dict(*args, **kwargs))

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` gave; a missing head or adapter is an error."""
        self.reward_model.load_trainable_state({k.removeprefix(MODULE_PREFIX): v for k, v in state_dict.items()})
        return torch.nn.modules.module._IncompatibleKeys([], [])

    @property
    def identity(self) -> Identity:
        """The base and the template that the weights belong to."""
        assert self._identity is not None, "the model is loaded in configure_model(), which the trainer calls"
        return self._identity

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The scale belongs to the weights, and they to a base and a template."""
        checkpoint["reward_scale"] = {"temperature": self.temperature, "zero": self.zero}
        checkpoint["reading"] = self.reading_state()
        checkpoint["identity"] = dict(self.identity)

    def reading_state(self) -> dict[str, Any]:
        """Where the head reads, to be saved beside its weights."""
        return {
            "readings": [str(reading) for reading in self.reward_model.readings],
            "question": self.question,
            "penalty": self.penalty,
            "evidence": self._evidence,
            "answer_accuracy": self.answer_accuracy,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the scale back; `UserError` if the weights belong elsewhere or were never trained."""
        check_stage(checkpoint, "rm.yaml")
        check_identity("checkpoint", checkpoint.get("identity"), self.identity)
        if (
            self._trainer is None or self.trainer.state.fn != "fit"
        ):  # between two phases of a fit, new adapters are what is to be saved
            check_trained("checkpoint", checkpoint.get("state_dict", {}))
        scale = checkpoint["reward_scale"]
        self.temperature, self.zero = scale["temperature"], scale["zero"]
        if self.reward_model.is_decoder:
            standard: dict[str, Any] = {
                "readings": ["last"],
                "question": self.question,
                "penalty": None,
                "evidence": [],
            }
            reading = checkpoint.get("reading") or standard  # of versions that knew no other
            model, self.penalty, self._evidence = self.reward_model, reading["penalty"], reading["evidence"]
            self.answer_accuracy = reading.get("answer_accuracy")
            model.read_as(self.tokenizer, reading["readings"], reading["question"])
            model.drop_unread_layers()
            self._initial_state = {name: own_part(p).cpu().clone() for name, p in trainable_state(model).items()}

    def _current_lr_factor(self, batch_idx: int) -> float:
        per_epoch = int(self.trainer.num_training_batches)
        first, num_steps = 0, self.trainer.estimated_stepping_batches
        if self._phase_epochs is not None:
            first, num_epochs = self._phase_epochs
            num_steps = num_epochs * per_epoch
        step = (self.current_epoch - first) * per_epoch + batch_idx
        return lr_factor(step, num_steps, self.warmup_share, self.lr_decay)

    def _log_metrics(self, prefix: str) -> None:
        if not self.metrics.update_called:  # named sets only
            return
        figures = self.metrics.compute(self.temperature)
        # They are of all ranks already; Lightning would warn that they are not.
        self.log_dict({f"{prefix}/{name}": value for name, value in figures.items()}, sync_dist=True)
        self.metrics.reset()
