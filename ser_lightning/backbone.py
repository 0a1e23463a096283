"""transformers + peft + bitsandbytes -> a scorer: a body, a float32 head outside of it, and the tokenizer.

A decoder's reward is read at the last position whose attention mask is 1; an encoder keeps its own pooling.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ser_lightning.errors import UserError

BUNDLED_MODEL = "world_lm"
"""Name of the small language model of the embedded synthetic world, which ships with the package."""

PAPER_TEMPLATE = (
    "{{% for m in messages %}}"
    "{{% if loop.first %}}{prefix}{{% endif %}}"
    "{{% if m['role'] == 'user' %}}{{{{ 'Question: ' + m['content'] + '\\n\\n' }}}}"
    "{{% elif m['role'] == 'assistant' %}}{{{{ 'Answer: ' + m['content'] }}}}"
    "{{% if not loop.last %}}{{{{ '\\n\\n' }}}}{{% else %}}{suffix}{{% endif %}}"
    "{{% else %}}{{{{ m['content'] + '\\n\\n' }}}}{{% endif %}}"
    "{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ 'Answer:' }}}}{{% endif %}}"
)


@dataclass
class LoraSettings:
    """Low-rank adapters on the body; the defaults are the paper's.

    Args:
        r: rank of the adapters.
        alpha: numerator of their scale, alpha / r.
        dropout: dropout on their input.
        target_modules: names of the layers that get one, or `all-linear`.
    """

    r: int = 8
    alpha: int = 32
    dropout: float = 0.1
    target_modules: str | list[str] = "all-linear"


@dataclass
class Backbone:
    """A pretrained body and how it is trained.

    Args:
        path: folder or Hub name of a transformers model, or `world_lm`, the one that ships with the package.
        train: `lora` trains adapters, `full` every weight, `head` the head alone.
        lora: the adapters, where `train` is `lora`.
        quantize: `nf4` holds the frozen body in 4 bits (bitsandbytes, double quantisation).
        dtype: number format of the body's weights; the head and the adapters stay in float32.
        template: `auto` takes the tokenizer's chat template and the paper's where it has none; `paper` is
            `Question: {Q}\\n\\nAnswer: {A}`; anything else is the path of a file with a Jinja chat template.
        attn_implementation: attention kernel as transformers names it; None lets it choose.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        gguf_file: name of a GGUF file in `path`, for models that ship as one.
    """

    path: str
    train: Literal["lora", "full", "head"] = "lora"
    lora: LoraSettings = field(default_factory=LoraSettings)
    quantize: Literal["none", "nf4"] = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"
    template: str = "auto"
    attn_implementation: str | None = None
    gradient_checkpointing: bool = False
    gguf_file: str | None = None

    def problems(self) -> list[str]:
        """Combinations that cannot work, a line each."""
        found = []
        if self.quantize != "none" and self.train == "full":
            found.append("backbone.train: got full with quantize nf4; 4-bit weights cannot be trained, use lora")
        if self.quantize != "none" and self.gguf_file:
            found.append("backbone.gguf_file: got a GGUF file with quantize nf4; use a safetensors folder or no nf4")
        if self.train == "lora" and (self.lora.r < 1 or not 0 <= self.lora.dropout < 1):
            found.append(
                f"backbone.lora: got r {self.lora.r}, dropout {self.lora.dropout}; need r >= 1, 0 <= dropout < 1"
            )
        return found

    def resolved_path(self) -> str:
        """`path`, or the folder of the bundled model."""
        if self.path == BUNDLED_MODEL and not Path(self.path).is_dir():
            return str(resources.files("ser_lightning.datamodules") / BUNDLED_MODEL)
        return self.path


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
    if problems := backbone.problems():
        raise UserError(problems)
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


def load_tokenizer(backbone: Backbone) -> PreTrainedTokenizerBase:
    """The tokenizer with a pad token and a chat template, so that everything is encoded in one way.

    Raises:
        UserError: if it cannot be found, has no EOS, or the template file does not exist.
    """
    path = backbone.resolved_path()
    extra = {"gguf_file": backbone.gguf_file} if backbone.gguf_file else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **extra)
    except (OSError, ValueError) as error:
        raise UserError(_not_found("tokenizer", path, error)) from error
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _spare_token(tokenizer)
    if backbone.template == "paper" or (backbone.template == "auto" and not tokenizer.chat_template):
        tokenizer.chat_template = _paper_template(tokenizer)
    elif backbone.template != "auto":
        file = Path(backbone.template)
        if not file.is_file():
            raise UserError(f"backbone.template: got {backbone.template}; need auto, paper or a Jinja file that exists")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    return tokenizer


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
        raise UserError(_not_found("model", path, error)) from error
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


def _spare_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """A token that never ends a sequence: plain transformers reads the reward before the first trailing pad."""
    eos = tokenizer.eos_token
    if eos is None and tokenizer.pad_token is None:
        raise UserError(
            f"backbone.path: got a tokenizer without EOS and pad ({tokenizer.name_or_path}); add them to it"
        )
    special = [t for t in tokenizer.get_added_vocab() if "pad" in t.lower() or "reserved" in t.lower()]
    for token in [tokenizer.unk_token, *special]:
        if token is not None and token not in (eos, tokenizer.bos_token):
            return token
    return eos


def _paper_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """`Question: {Q}\\n\\nAnswer: {A}` between the special tokens that the tokenizer itself puts around a text."""
    bare = tokenizer("x", add_special_tokens=False).input_ids
    full = tokenizer("x", add_special_tokens=True).input_ids
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    prefix = "".join(tokenizer.convert_ids_to_tokens(full[:start]))
    suffix = "".join(tokenizer.convert_ids_to_tokens(full[start + len(bare) :]))
    if not suffix and tokenizer.eos_token != tokenizer.pad_token:
        suffix = tokenizer.eos_token or ""
    return PAPER_TEMPLATE.format(prefix=prefix, suffix=suffix)


def _not_found(what: str, path: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"backbone.path: no {what} could be loaded from {path} ({reason}); give a transformers folder or a Hub name"
