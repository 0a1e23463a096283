"""The scorer: a transformers body, adapters on it, and a float32 head outside of both.

A decoder's reward is read at the last position whose attention mask is 1; an encoder keeps its own pooling.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from ser_lightning.backbone import Backbone, LoraSettings, load_tokenizer, not_found
from ser_lightning.errors import UserError, raise_problems


class Scorer(nn.Module):
    """`AutoModelForSequenceClassification` with one label, read at the right token and with a float32 head.

    Args:
        model: the transformers model; its body may be wrapped by peft.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        prefix = str(model.base_model_prefix)
        self.head_names = [name for name, _ in model.named_children() if name != prefix]
        self.is_decoder = self.head_names == ["score"]
        parameters = inspect.signature(_unwrapped(self.body).forward).parameters
        self._takes_position_ids = "position_ids" in parameters
        self._takes_use_cache = "use_cache" in parameters
        for name in self.head_names:
            _keep_in_float32(model.get_submodule(name))

    @property
    def body(self) -> nn.Module:
        """The pretrained part, as peft wraps it."""
        return getattr(self.model, str(self.model.base_model_prefix))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Rewards of whole sequences.

        Args:
            input_ids: (R, T) token ids.
            attention_mask: (R, T), 1 = a real token; padded on either side.

        Returns:
            (R,) float32 logits.
        """
        if not self.is_decoder:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits.float().squeeze(-1)
        extra: dict[str, Any] = {}
        if self._takes_position_ids:
            extra["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp_min(0)
        if self._takes_use_cache:
            extra["use_cache"] = False
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask, **extra).last_hidden_state
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        last_index = (positions * attention_mask).argmax(-1)
        last = hidden[torch.arange(len(hidden), device=hidden.device), last_index]
        return self.model.score(last).squeeze(-1)

    def trainable_state(self) -> dict[str, Tensor]:
        """Every tensor that training changes, by name; views, not copies."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `trainable_state` gave.

        Raises:
            UserError: if a trainable tensor is missing, left over or of another shape; a head must never stay random.
        """
        own = self.trainable_state()
        if own.keys() != state.keys():
            missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            raise UserError(
                f"saved weights do not fit the model: got {len(missing)} missing {missing[:2]}, {len(extra)} unknown "
                f"{extra[:2]}; load them with the backbone settings that they were trained with"
            )
        for name, value in state.items():
            if own[name].shape != value.shape:
                raise UserError(
                    f"saved weights do not fit the model: got {name} of shape {tuple(value.shape)}, need "
                    f"{tuple(own[name].shape)}; load them with the backbone settings that they were trained with"
                )
            own[name].copy_(value)


def load_scorer(backbone: Backbone, device: torch.device | str = "cpu") -> Scorer:
    """The scorer as training starts from it. The new weights (head, adapters) are drawn from the global seed alone.

    Raises:
        UserError: if the model cannot be found or the settings cannot work together.
    """
    raise_problems(backbone.problems())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        model = _load_model(backbone, device)
        body = getattr(model, str(model.base_model_prefix))
        if backbone.train != "full":
            body.requires_grad_(False)
        if backbone.quantize != "none":
            body = prepare_model_for_kbit_training(body, use_gradient_checkpointing=False)
        if backbone.train == "lora":
            body = get_peft_model(body, _lora_config(backbone.lora))
            setattr(model, str(model.base_model_prefix), body)
        if backbone.gradient_checkpointing:
            _unwrapped(body).enable_input_require_grads()
            _unwrapped(body).gradient_checkpointing_enable({"use_reentrant": False})
    return Scorer(model).train()  # transformers loads for inference, with dropout off


def merged_model(scorer: Scorer) -> nn.Module:
    """The plain transformers model with the adapters merged into its body. The scorer is used up by this."""
    model = scorer.model
    if isinstance(scorer.body, PeftModel):
        setattr(model, str(model.base_model_prefix), scorer.body.merge_and_unload())
    for name in scorer.head_names:
        vars(model.get_submodule(name)).pop("forward", None)
    return model


def _load_model(backbone: Backbone, device: torch.device | str) -> nn.Module:
    path = backbone.resolved_path()
    extra: dict[str, Any] = {"dtype": getattr(torch, backbone.dtype)}
    if backbone.attn_implementation:
        extra["attn_implementation"] = backbone.attn_implementation
    if backbone.gguf_file:
        extra["gguf_file"] = backbone.gguf_file
    if backbone.quantize == "nf4":
        extra["device_map"] = {"": device}
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_quant_storage=torch.uint8,
            llm_int8_skip_modules=["score", "classifier", "pre_classifier", "pooler", "head"],
        )
    try:
        with _quiet_load_report():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path, num_labels=1, ignore_mismatched_sizes=True, output_loading_info=True, **extra
            )
    except (OSError, ValueError) as error:
        raise UserError(not_found("model", path, error)) from error
    new = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if random := [key for key in new if key.startswith(model.base_model_prefix + ".")]:
        rank_zero_warn(
            f"backbone.path: {path} lacks {len(random)} tensors of the body, such as {random[0]}; they start random"
        )
    tokenizer = load_tokenizer(backbone)
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise UserError(f"backbone.path: got a tokenizer of {len(tokenizer)} tokens for {rows} embeddings; use its own")
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


@contextmanager
def _quiet_load_report() -> Iterator[None]:
    """A new head and an unused LM head are the rule here; what is not is said by `_load_model` itself."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _lora_config(lora: LoraSettings) -> LoraConfig:
    return LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules, bias="none"
    )


def _unwrapped(body: nn.Module) -> nn.Module:
    return body.get_base_model() if isinstance(body, PeftModel) else body


def _keep_in_float32(module: nn.Module) -> None:
    """Half-precision scores collapse into ties, so the head leaves autocast and casts what comes in."""
    module.float().requires_grad_(True)
    forward = module.forward

    @wraps(forward)
    def float32_forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            return forward(hidden.float(), *args, **kwargs)

    module.forward = float32_forward
