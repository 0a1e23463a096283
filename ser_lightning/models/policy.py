"""The policy, and beside it the frozen reference and the critic: adapters and heads on one base, or whole copies.

With `train: lora` there is one frozen base (optionally in 4 bits) in memory, and a role is an adapter on it. With
`train: full` every role has a body of its own.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache

from ser_lightning.data.layouts import PADDED, Layout
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.models.backbone import Backbone, load_tokenizer, not_found
from ser_lightning.models.loading import (
    check_vocabulary,
    is_meta,
    keep_in_float32,
    loading_arguments,
    lora_config,
    meta_model,
    position_arguments,
    prepare_body,
    quiet_load_report,
    usable_attention,
    use_liger_kernels,
)
from ser_lightning.models.masks import (
    PACKED_ATTENTION,
    PADDED_ATTENTION,
    LayoutName,
    choose_layout,
    last_hidden,
    padded,
)
from ser_lightning.models.trainable import load_exactly, trainable_state
from ser_lightning.records import Inputs, Padding

Role = Literal["policy", "reference", "critic"]
POLICY: Role = "policy"


class Policy(nn.Module):
    """A causal language model in up to three roles.

    Args:
        lm: the transformers model; with adapters its body is wrapped by peft, and the adapter `policy` is on it.
        others: the other roles' models, where they have a body of their own: `reference` a causal language model,
            `critic` a body. Empty where the roles are adapters.
        has_critic: whether there is a critic, with a value head.
        layout: of the sequences that it reads best.
    """

    def __init__(self, lm: nn.Module, others: dict[str, nn.Module], has_critic: bool, layout: Layout = PADDED) -> None:
        super().__init__()
        self.lm, self.layout = lm, layout
        self.others = nn.ModuleDict(others)
        self.value_head: nn.Linear | None = None
        if has_critic:
            self.value_head = nn.Linear(lm.config.get_text_config().hidden_size, 1)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
            keep_in_float32(self.value_head)

    @property
    def body(self) -> nn.Module:
        """The policy's body, as peft wraps it."""
        return body_of(self.lm)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    def hidden(self, role: Role, inputs: Inputs) -> Tensor:
        """(R, T, H) or (N, L, H) last hidden states of whole sequences, in their layout; see `masks.last_hidden`."""
        with self.in_role(role):
            return last_hidden(self._body_in(role), inputs)

    def next_hidden(
        self, role: Role, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Cache
    ) -> Tensor:
        """(R, H) hidden states at the last of the new positions, which are added to the cache.

        Args:
            input_ids: (R, t) new tokens.
            attention_mask: (R, T) of all tokens so far, the new ones included.
            position_ids: (R, t) of the new tokens.
            cache: keys and values of the tokens before.
        """
        body = self._body_in(role)
        arguments = position_arguments(body, attention_mask)
        if "position_ids" in arguments:
            arguments["position_ids"] = position_ids
        arguments |= {"use_cache": True, "past_key_values": cache}
        with self.in_role(role):
            return body(input_ids=input_ids, attention_mask=attention_mask, **arguments).last_hidden_state[:, -1]

    @contextmanager
    def sampling(self, padding: Padding) -> Iterator[None]:
        """Token by token the models take a kernel that is not compiled for rows of a fixed size."""
        one_by_one = PADDED_ATTENTION if self.lm._supports_sdpa else "eager"
        configs = [body_of(self.lm).config, *(other.config for other in self.others.values())]
        before = [config._attn_implementation for config in configs]
        try:
            for config in configs:
                if config._attn_implementation == PACKED_ATTENTION:
                    config._attn_implementation = one_by_one
            with padded(padding):
                yield
        finally:
            for config, implementation in zip(configs, before, strict=True):
                config._attn_implementation = implementation

    def head(self, role: Role) -> Callable[[Tensor], Tensor]:
        """From (n, H) hidden states to (n, V) logits."""
        lm = getattr(self.others, role, self.lm)
        return lambda hidden: logits_of(lm, hidden)

    def values(self, hidden: Tensor) -> Tensor:
        """(..., ) float32 values of (..., H) hidden states of the critic."""
        assert self.value_head is not None
        return self.value_head(hidden).squeeze(-1)

    def parameters_of(self, role: Role) -> list[nn.Parameter]:
        """What is trained for a role."""
        is_critic = role == "critic"
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        return [p for name, p in named if _is_critic(name) == is_critic]

    def trainable_state(self) -> dict[str, Tensor]:
        """Every tensor that training changes, by name; views, not copies."""
        return trainable_state(self)

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `trainable_state` gave; `UserError` if anything is missing, left over or of another shape."""
        load_exactly(self.trainable_state(), state)

    def _body_in(self, role: Role) -> nn.Module:
        if role not in self.others:
            return self.body
        other = self.others[role]
        return other if role == "critic" else body_of(other)

    def in_role(self, role: Role) -> AbstractContextManager[None]:
        """Activates a role's adapter. Run the backward pass inside it too: gradient checkpointing runs layers again."""
        return use_adapter(self.body, role if role in getattr(self.body, "peft_config", {}) else None)


def body_of(model: nn.Module) -> nn.Module:
    """The body of a transformers model with a head."""
    return getattr(model, str(model.base_model_prefix))


def logits_of(lm: nn.Module, hidden: Tensor) -> Tensor:
    """What the model's own forward makes of its last hidden states; `check_head` holds it to that.

    Args:
        lm: a causal language model.
        hidden: (..., H).

    Returns:
        (..., V) logits.
    """
    head = lm.get_output_embeddings()
    logits = head(hidden.to(head.weight.dtype))
    cap = getattr(lm.config.get_text_config(), "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


@contextmanager
def use_adapter(body: nn.Module, name: str | None) -> Iterator[None]:
    """One adapter of a body, or none, for the time of a forward pass and, where it trains, of the backward pass.

    peft's own switches also turn `requires_grad` on and off, which would take adapters out of their optimiser.

    Args:
        body: a body; one without adapters is left alone.
        name: the adapter, None for the bare base.
    """
    layers = [m for m in body.modules() if isinstance(m, BaseTunerLayer)] if isinstance(body, PeftModel) else []
    before = [(layer, layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]
        yield
    finally:
        for layer, active, is_disabled in before:
            layer._active_adapter, layer._disable_adapters = active, is_disabled


def load_policy(
    backbone: Backbone,
    device: torch.device | str = "cpu",
    start: dict[str, Tensor] | None = None,
    has_reference: bool = False,
    has_critic: bool = False,
    layout: LayoutName = "padded",
) -> Policy:
    """The policy as training starts from it. New weights are drawn from the global seed alone.

    Args:
        backbone: the pretrained model and how it is trained, `lora` or `full`.
        device: where 4-bit weights are made; `meta` reads no weights of the pretrained model.
        start: trained weights of a policy to start from, as `policy_state` gives them.
        has_reference: keep the starting policy beside it, frozen.
        has_critic: add a critic, whose body starts as the base and whose head starts at 0.
        layout: see `masks.choose_layout`.

    Raises:
        UserError: if the model cannot be found or the settings cannot work together.
    """
    problems = backbone.problems()
    if backbone.train == "head":
        problems.append("backbone.train: got head, which trains no policy; use lora or full")
    raise_problems(problems)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        lm = load_language_model(backbone, device)
        with torch.device("meta") if is_meta(device) else nullcontext():
            prepare_body(lm, backbone, POLICY)
            if backbone.use_liger_kernel:
                use_liger_kernels(lm, device)
            if not is_meta(device):
                _check_head(lm)
            chosen = choose_layout(layout, lm, device, "model.layout")
            if backbone.train == "lora":
                policy = _with_adapters(lm, backbone, start, has_reference, has_critic)
            else:
                policy = _with_copies(lm.requires_grad_(True), start, has_reference, has_critic)
    policy.layout = chosen
    return policy.train()  # transformers loads for inference, with dropout off


def _with_adapters(
    lm: nn.Module, backbone: Backbone, start: dict[str, Tensor] | None, has_reference: bool, has_critic: bool
) -> Policy:
    """Reference and critic as adapters on the policy's base; the reference is the bare base if nothing came before."""
    body = body_of(lm)
    lm.requires_grad_(False)
    _adapter_parameters(body, POLICY, is_trained=True)
    if start is not None:
        load_exactly(trainable_state(Policy(lm, {}, False)), start)
        if has_reference:
            body.add_adapter("reference", lora_config(backbone.lora))
            frozen = _adapter_parameters(body, "reference", is_trained=False)
            for name, p in _adapter_parameters(body, POLICY, is_trained=True).items():
                frozen[name.replace(f".{POLICY}.", ".reference.")].data.copy_(p.data)
    if has_critic:
        body.add_adapter("critic", lora_config(backbone.lora))
        _adapter_parameters(body, "critic", is_trained=True)
    return Policy(lm, {}, has_critic)


def _with_copies(lm: nn.Module, start: dict[str, Tensor] | None, has_reference: bool, has_critic: bool) -> Policy:
    """A frozen copy as the reference, a copy of the body as the critic."""
    if start is not None:
        load_exactly(trainable_state(Policy(lm, {}, False)), start)
    others = {}
    if has_reference:
        others["reference"] = copy.deepcopy(lm).requires_grad_(False)
    if has_critic:
        others["critic"] = copy.deepcopy(body_of(lm))
    return Policy(lm, others, has_critic)


def _adapter_parameters(body: nn.Module, adapter: str, is_trained: bool) -> dict[str, nn.Parameter]:
    """The parameters of one adapter by name, set to be trained or not."""
    found = {name: p for name, p in body.named_parameters() if f".{adapter}." in name}
    for p in found.values():
        p.requires_grad_(is_trained)
    return found


def _is_critic(name: str) -> bool:
    return name.startswith(("value_head.", "others.critic.")) or ".critic." in name


def policy_state(trainable: dict[str, Tensor]) -> dict[str, Tensor]:
    """The policy's part of a trainable state: what another run can start from."""
    return {name: value for name, value in trainable.items() if not _is_critic(name)}


def load_language_model(backbone: Backbone, device: torch.device | str) -> nn.Module:
    """A causal language model with its head, as it was pretrained; `UserError` where it is none or lacks weights."""
    path, backbone = backbone.resolved_path(), usable_attention(backbone, device)
    if is_meta(device):
        try:
            lm = meta_model(AutoModelForCausalLM, backbone)
        except (OSError, ValueError) as error:
            raise UserError(not_found("language model", path, error)) from error
        check_vocabulary(lm, load_tokenizer(backbone))
        return lm
    # Where it computes: reward models on its base get their heads there, and are no part of the module that is moved.
    place = None if torch.device(device).type == "cpu" and backbone.quantize == "none" else device
    try:
        with quiet_load_report():
            lm, report = AutoModelForCausalLM.from_pretrained(
                path, output_loading_info=True, **loading_arguments(backbone, place)
            )
    except (OSError, ValueError, ImportError) as error:  # the last for kernels of attention
        raise UserError(not_found("language model", path, error)) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"backbone.path: {path} lacks {len(missing)} tensors of a language model, such as {missing[0]}; "
            "a policy needs a causal language model with its head"
        )
    check_vocabulary(lm, load_tokenizer(backbone))
    return lm


def _check_head(lm: nn.Module) -> None:
    """`UserError` for a model that does to its logits what `logits_of` does not."""
    ids = torch.tensor([[1, 2, 3, 4]]).to(next(lm.parameters()).device)
    mask = torch.ones_like(ids)
    # A body in 4 bits ends in float32, which a head in half precision takes only under autocast, as in training.
    dtype = lm.get_output_embeddings().weight.dtype
    with torch.no_grad(), torch.autocast(ids.device.type, dtype, enabled=dtype != torch.float32):
        hidden = body_of(lm)(input_ids=ids, attention_mask=mask).last_hidden_state
        ours, own = logits_of(lm, hidden).float(), lm(input_ids=ids, attention_mask=mask).logits.float()
    if not torch.allclose(ours, own, rtol=1e-2, atol=1e-2 * float(own.abs().max())):
        raise UserError(
            f"backbone.path: got a {type(lm).__name__}, whose logits are scaled in a way that is not known here; "
            "use another model"
        )
