"""What the LightningModules around a policy have in common: its start, its tokenizer, its weights in a checkpoint."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from transformers import PreTrainedTokenizerBase

from ser_lightning.data.packing import Tokens
from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.models.fingerprint import check_identity, check_stage, identity_of
from ser_lightning.models.policy import Policy, load_policy
from ser_lightning.models.probe import Finding, Use, start_findings
from ser_lightning.models.trainable import trained_part
from ser_lightning.records import Prompt
from ser_lightning.rl.rollout import Generator, Sampling, check_room, stop_ids
from ser_lightning.runs.policy_run import WEIGHTS_PREFIX, PolicyStart, resolve_start
from ser_lightning.training.schedule import peak_rate
from ser_lightning.training.strategies import check_strategy


class PolicyModule(LightningModule):
    """Holds a policy, which `configure_model` loads.

    Args:
        backbone: a pretrained model or the folder of a run that trained a policy, and how it is trained.
    """

    use: Use = "policy"
    stages: tuple[str, ...] = ("sft.yaml", "ppo.yaml")
    """Configs of whose runs it takes checkpoints."""
    optimizer: OptimizerCallable | None = None
    """How the policy is trained; None where it is only asked."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        # A step is several micro-batches or updates, which automatic optimisation cannot do.
        self.automatic_optimization = False
        # A checkpoint holds what was trained; load_state_dict checks that all of it is there.
        self.strict_loading = False
        self.backbone = backbone
        self._start: PolicyStart | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._policy: Policy | None = None
        self.auto_tokens: tuple[int, int] | None = None
        """What `auto` is for tokens in a batch, in training and in sampling; the data module sets it."""

    @property
    def token_settings(self) -> tuple[Tokens, Tokens]:
        """Tokens in a batch, in training and in sampling, as the config has them."""
        return (1, 1)

    @property
    def wants_budgets(self) -> bool:
        """Whether a setting says `auto` and the data module has not yet told what that is."""
        return self.auto_tokens is None and "auto" in self.token_settings

    def _tokens(self, place: int) -> int:
        """A budget of `token_settings` as a number."""
        given = self.token_settings[place]
        if given != "auto":
            return given
        if self.auto_tokens is None:
            raise RuntimeError("what auto is comes from the data module, with its first loader")
        return self.auto_tokens[place]

    @property
    def start(self) -> PolicyStart:
        """What the policy starts from: a pretrained model, or what another run has made of one."""
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
        """The models; loaded by `configure_model`."""
        if self._policy is None:
            raise RuntimeError("the models are loaded in configure_model(), which the trainer calls")
        return self._policy

    @property
    def models_beside(self) -> list[nn.Module]:
        """Models on the device besides the policy's roles."""
        return []

    def start_findings(self, max_length: int | None) -> list[Finding]:
        """What the data module is told before it encodes; whether prompts fit is up to `check_prompts`."""
        longest = max_length if self.use == "sft" else None
        rate = None if self.optimizer is None else peak_rate(self.optimizer)
        return start_findings(self.start.backbone, self.tokenizer, self.use, longest, learning_rate=rate)

    def configure_model(self) -> None:
        """Load the models, once; `UserError` if the run that the policy starts from was trained on another base."""
        if self._policy is None:
            self._seed = torch.initial_seed()
            device = self.trainer.strategy.root_device if self._trainer is not None else self.device
            with torch.device("cpu"):  # Lightning calls this where new tensors are made on the GPU
                policy = self._load_models(device)
            check_identity(self.backbone.path, self.start.identity, identity_of(policy.lm, self.tokenizer))
            self._policy = policy

    def _load_models(self, device: torch.device) -> Policy:
        """The policy as training starts from it, and whatever a subclass has beside it."""
        return load_policy(self.start.backbone, device, self.start.weights)

    def setup(self, stage: str) -> None:
        """Refuse strategies that cannot train this."""
        check_strategy(self.trainer, "policy", self.backbone.quantize)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The weights belong to a base and a template."""
        checkpoint["identity"] = dict(identity_of(self.policy.lm, self.tokenizer))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """`UserError` if they belong elsewhere."""
        check_stage(checkpoint, *self.stages)
        check_identity("checkpoint", checkpoint.get("identity"), identity_of(self.policy.lm, self.tokenizer))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What is trained of policy and critic; never a frozen base, reference or reward model."""
        return trained_part(self, super().state_dict(*args, **kwargs))

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` gave; a missing adapter or head is an error."""
        self.policy.load_trainable_state({k.removeprefix(WEIGHTS_PREFIX): v for k, v in state_dict.items()})
        return torch.nn.modules.module._IncompatibleKeys([], [])


class SamplingModule(PolicyModule):
    """Holds a policy that answers prompts."""

    sampling: Sampling

    def configure_model(self) -> None:
        """Load the models, once, and find out what ends a response."""
        super().configure_model()
        eos = self.policy.lm.generation_config.eos_token_id
        self._stop_ids = stop_ids(eos, self.tokenizer, self.sampling.stop)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Called by the data module before sampling: `UserError` if a prompt leaves no room for a response."""
        check_room(prompts, self.sampling.max_new_tokens, self.policy.lm.config.get_text_config())

    @property
    def generator(self) -> Generator:
        """Samples from the policy."""
        return Generator(self.sampling, self._stop_ids, int(self.tokenizer.pad_token_id), self._tokens(1))
