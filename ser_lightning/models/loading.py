"""Loading and preparing pretrained models: what reward model and policy have in common."""

import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from lightning.pytorch.utilities import rank_zero_info
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, BitsAndBytesConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.integrations import replace_with_bnb_linear
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available
from transformers.utils import logging as transformers_logging

from ser_lightning.errors import UserError
from ser_lightning.models.backbone import Backbone, LoraSettings

_NEVER_QUANTISED = ["lm_head", "score", "classifier", "pre_classifier", "pooler", "head"]


def loading_arguments(backbone: Backbone, device: torch.device | str | None) -> dict[str, Any]:
    """What `from_pretrained` needs besides the path.

    Args:
        device: where the weights are read to, None = wherever new tensors are made.
    """
    arguments: dict[str, Any] = {"dtype": getattr(torch, backbone.dtype)}
    arguments["trust_remote_code"] = backbone.trust_remote_code
    if backbone.attn_implementation:
        arguments["attn_implementation"] = backbone.attn_implementation
    if backbone.gguf_file:
        arguments["gguf_file"] = backbone.gguf_file
    if device is not None:
        arguments["device_map"] = {"": device}
    if backbone.quantize == "nf4":
        arguments["quantization_config"] = quantization_config()
    return arguments


def usable_attention(backbone: Backbone, device: torch.device | str) -> Backbone:
    """The settings without FlashAttention and FlexAttention where these cannot train: a run may be read elsewhere.

    Args:
        device: where the model will compute. Away from CUDA transformers chooses, which is said in one line.
    """
    name = backbone.attn_implementation
    if name is None or torch.device(device).type == "cuda" or not ("flash" in name or "flex" in name):
        return backbone
    if not is_meta(device):
        rank_zero_info(f"Attention: as transformers chooses, since {name} needs a CUDA GPU.")
    return replace(backbone, attn_implementation=None)


def is_meta(device: torch.device | str) -> bool:
    """Whether tensors on a device have shapes and no values, so that there is nothing to read for them."""
    return torch.device(device).type == "meta"


def meta_arguments(device: torch.device | str) -> dict[str, Any]:
    """An argument with which `from_pretrained` looks for every weight and reads none, where a device is `meta`."""
    return {"device_map": {"": "meta"}} if is_meta(device) else {}


def meta_model(auto: Any, backbone: Backbone) -> nn.Module:
    """What `auto.from_pretrained` would load, on the meta device: made from the config, no weights are read.

    Weights that `nf4` will pack are `Params4bit` of their full shape and the body's number format.
    """
    arguments = loading_arguments(backbone, None)
    quantization = arguments.pop("quantization_config", None)
    arguments.pop("gguf_file", None)
    config = read_config(backbone)
    with torch.device("meta"):
        model = auto.from_config(config, **arguments)
    if quantization is not None:
        skipped = [*quantization.llm_int8_skip_modules, *(model._keep_in_fp32_modules or [])]
        model = replace_with_bnb_linear(model, skipped, quantization)
    return model


def read_config(backbone: Backbone) -> PretrainedConfig:
    """The config of a classifier with one label; `UserError` if its weights are fewer than its layers."""
    extra = {"gguf_file": backbone.gguf_file} if backbone.gguf_file else {}
    config = AutoConfig.from_pretrained(
        backbone.resolved_path(), num_labels=1, trust_remote_code=backbone.trust_remote_code, **extra
    )
    check_layers(Path(backbone.resolved_path()), config)
    return config


def check_layers(folder: Path, config: PretrainedConfig) -> None:
    """`UserError` where a config asks for more layers than its weights can have: to make them might take for ever."""
    file, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if file.is_file():
        with safe_open(file, "pt") as tensors:
            number = len(tensors.keys())
    elif index.is_file():
        number = len(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    else:
        return
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > number:
        raise UserError(
            f"{folder}: its config.json has more layers than its weights have tensors ({number}); is it damaged?"
        )


def quantization_config() -> BitsAndBytesConfig:
    """4 bits: NF4 with double quantisation, computed in bfloat16, the head left out."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.uint8,
        llm_int8_skip_modules=_NEVER_QUANTISED,
    )


def copy_rounded_weights(source: nn.Module, target: nn.Module) -> None:
    """Give a body in 16 or 32 bits the weights that a 4-bit one computes with, so that both compute the same.

    Args:
        source: a body whose layers are in 4 bits.
        target: the same body, loaded without quantisation; changed in place.
    """
    layers = {name: layer for name, layer in source.named_modules() if isinstance(layer, Linear4bit)}
    for name, layer in target.named_modules():
        if name in layers:
            packed: Any = layers[name].weight
            layer.weight.data.copy_(dequantize_4bit(packed.data, packed.quant_state))


def check_vocabulary(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell the model its pad token; `UserError` if the tokenizer has tokens that the model has no embedding for."""
    if problem := vocabulary_problem(model, tokenizer):
        raise UserError(problem)
    model.config.pad_token_id = tokenizer.pad_token_id


def vocabulary_problem(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """One line if the tokenizer has tokens that the model has no embedding for."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) <= rows:
        return None
    return f"backbone.path: got a tokenizer of {len(tokenizer)} tokens for {rows} embeddings; use its own"


def prepare_body(model: nn.Module, backbone: Backbone, adapter: str = "default") -> None:
    """Freeze, quantise for training and wrap the body of a model, as the settings say.

    Args:
        model: any transformers model with a head on top of its body.
        adapter: name of the new adapter, where there is one.
    """
    prefix = str(model.base_model_prefix)
    body = getattr(model, prefix)
    if backbone.train != "full":
        body.requires_grad_(False)
    if backbone.quantize != "none":
        # No `prepare_model_for_kbit_training`: it casts norms and embeddings to float32, and with them all states
        # between 4-bit layers, which is 1 GiB of weights and half of the activations of an 8B model.
        keep_differentiable(body)
    if backbone.train == "lora":
        try:
            body = get_peft_model(body, lora_config(backbone.lora), adapter_name=adapter)
        except ValueError as error:
            raise UserError(f"backbone.lora.target_modules: {' '.join(str(error).split())[:300]}") from error
        leave_casts_to_autocast(body)
        setattr(model, prefix, body)
    if backbone.gradient_checkpointing:
        unwrapped(body).enable_input_require_grads()
        unwrapped(body).gradient_checkpointing_enable({"use_reentrant": False})


def use_liger_kernels(model: nn.Module, device: torch.device | str) -> None:
    """Give the norms and gated MLPs of one model Liger's Triton kernels, with which a batch needs less time and memory.

    Args:
        model: a transformers model with a head on top of its body, which may be wrapped by peft.
        device: where it will compute. Away from CUDA its own kernels stay, which is said in one line.

    Raises:
        UserError: on CUDA, if the package is missing or has no kernels for the model.
    """
    if is_meta(device):
        return
    if torch.device(device).type != "cuda":
        rank_zero_info("Kernels: the model's own, as backbone.use_liger_kernel needs a CUDA GPU.")
        return
    if not is_liger_kernel_available():
        raise UserError(
            "backbone.use_liger_kernel: got true, but liger-kernel is missing; pip install 'ser-lightning[liger]'"
        )
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    body: Any = unwrapped(getattr(model, str(model.base_model_prefix)))
    kind = body.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(f"backbone.use_liger_kernel: got true, but Liger has no kernels for a {kind}; set it to false")
    # Liger also replaces the classes that later models are made of, which may be meant for a CPU.
    classes = vars(sys.modules[type(body).__module__])
    before = dict(classes)
    try:
        apply_liger_kernel(body, dict.fromkeys(("rope", "cross_entropy", "fused_linear_cross_entropy"), False))
    finally:
        classes.update(before)


def leave_casts_to_autocast(body: nn.Module) -> None:
    """Keep peft from casting what goes into adapters while autocast is on, as its 4-bit layers do already.

    It casts to the float32 of the adapters, and autocast right back: two more copies of the input of every layer, more
    than a quarter of the time of a batch on a GPU (`benchmarks/gpu/kernels.py`).
    """
    for layer in body.modules():
        if isinstance(layer, LoraLayer):
            vars(layer)["_cast_input_dtype"] = _cast_without_autocast


def _cast_without_autocast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return x if x is None or torch.is_autocast_enabled(x.device.type) else x.to(dtype)


def keep_differentiable(body: nn.Module) -> None:
    """Keep 4-bit layers from a CPU kernel without gradients.

    bitsandbytes repacks them for it at the first forward pass in evaluation mode, for good: whatever is trained after
    the first scoring would get no gradient through them, and nothing but a warning would say so.
    """
    for module in body.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


def position_arguments(body: nn.Module, attention_mask: Tensor) -> dict[str, Any]:
    """Arguments with which a decoder's result does not depend on the padding side, and no cache is filled.

    Args:
        body: the decoder's body, as peft may wrap it.
        attention_mask: (R, T), 1 = a real token.
    """
    parameters = inspect.signature(unwrapped(body).forward).parameters
    arguments: dict[str, Any] = {}
    if "position_ids" in parameters:
        arguments["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp_min(0)
    if "use_cache" in parameters:
        arguments["use_cache"] = False
    return arguments


@contextmanager
def quiet_load_report() -> Iterator[None]:
    """Hide the expected notes on a new head and an unused LM head; the loader still reports anything else."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def lora_config(lora: LoraSettings) -> LoraConfig:
    return LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules, bias="none"
    )


def unwrapped(body: nn.Module) -> nn.Module:
    return body.get_base_model() if isinstance(body, PeftModel) else body


def keep_in_float32(module: nn.Module) -> None:
    """Half-precision scores collapse into ties, so the head leaves autocast and casts what comes in."""
    module.float().requires_grad_(True)
    forward = module.forward

    @wraps(forward)
    def float32_forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            return forward(hidden.float(), *args, **kwargs)

    module.forward = float32_forward


def forget_gguf(model: nn.Module) -> None:
    """Let a model be saved whose weights came out of a GGUF file; transformers takes it for quantised still.

    Args:
        model: a transformers model; others than those from GGUF files are left alone.
    """
    config: Any = model.config
    method = getattr(getattr(config, "quantization_config", None), "quant_method", None)
    if getattr(method, "value", method) != "gguf":
        return
    del config.quantization_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(name, None)
