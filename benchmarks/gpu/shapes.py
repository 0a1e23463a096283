"""Models of known shapes with random weights, made where they are to run; nothing is downloaded or read from disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Params4bit
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast
from transformers.integrations import replace_with_bnb_linear

from benchmarks.speed.lengths import SPECIAL, VOCABULARY

SHAPES: dict[str, dict[str, Any]] = {
    "135m": {"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536}
    | {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    "0.5b": {"model_type": "llama", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864}
    | {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "1.5b": {"model_type": "llama", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960}
    | {"num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "8b": {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336}
    | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False},
}
"""Llamas of the sizes of SmolLM2-135M, Qwen2.5-0.5B, Qwen2.5-1.5B and Llama 3 8B, as their cards give them."""
TINY = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2}
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] + ' ' }}{% if m['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
)


def shape_of(name: str, is_tiny: bool) -> dict[str, Any]:
    """Arguments of a config; of the same kind of model but small in tiny."""
    return SHAPES[name] | (TINY if is_tiny else {})


def write_folder(folder: Path, name: str, is_tiny: bool) -> Path:
    """A config and a tokenizer in which id n is the word wn: all of a model but its weights.

    Returns:
        The folder.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    shape = shape_of(name, is_tiny)
    settings = {k: v for k, v in shape.items() if k != "model_type"}
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    AutoConfig.for_model(shape["model_type"], **settings, **ids, max_position_embeddings=8192).save_pretrained(folder)
    words = {**{word: i for i, word in enumerate(SPECIAL)}, **{f"w{i}": i for i in range(len(SPECIAL), VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.model_max_length, fast.chat_template = 8192, TEMPLATE
    fast.save_pretrained(folder)
    return folder


def layer_weights(name: str, is_tiny: bool) -> int:
    """Weights of all layers without embeddings: two operations each for a token."""
    shape = shape_of(name, is_tiny)
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    attention = 2 * hidden * hidden + 2 * hidden * shape["num_key_value_heads"] * hidden // heads
    return shape["num_hidden_layers"] * (attention + 3 * hidden * shape["intermediate_size"])


@contextmanager
def random_weights(device: str, share: bool = False) -> Iterator[None]:
    """Within this, `from_pretrained` of the classes for rewards and language models makes weights up on a device.

    What it makes is what transformers loads for the same folder and arguments: names, number formats, packed layers.

    Args:
        device: where the weights are made.
        share: models of the same shape get the same tensors, so that several of them take the memory of one. Only
            for weights that are not trained.
    """
    shared: dict[tuple[str, torch.Size, torch.dtype], Tensor] | None = {} if share else None

    def make(cls: Any, path: str, config: Any = None, output_loading_info: bool = False, **arguments: Any) -> Any:
        config = config or AutoConfig.from_pretrained(path)
        model = empty_model(cls, config, **arguments)
        fill(model, device, arguments.get("quantization_config"), shared)
        model.eval()
        return (model, {"missing_keys": [], "mismatched_keys": []}) if output_loading_info else model

    classes: tuple[Any, ...] = (AutoModelForSequenceClassification, AutoModelForCausalLM)
    for cls in classes:
        cls.from_pretrained = classmethod(make)
    try:
        yield
    finally:
        for cls in classes:
            del cls.from_pretrained  # what it inherits is there again


def empty_model(
    cls: Any,
    config: Any,
    dtype: torch.dtype,
    quantization_config: Any = None,
    attn_implementation: str | None = None,
    **_: Any,
) -> Any:
    """The model on the meta device, with 4-bit layers where these are asked for."""
    extra = {"attn_implementation": attn_implementation} if attn_implementation else {}
    with torch.device("meta"):
        model = cls.from_config(config, dtype=dtype, **extra)
    if quantization_config is not None:
        skipped = [*quantization_config.llm_int8_skip_modules, *(model._keep_in_fp32_modules or [])]
        model = replace_with_bnb_linear(model, skipped, quantization_config)
        model.is_loaded_in_4bit = True
    return model


def fill(model: nn.Module, device: str, quantization_config: Any, shared: dict[Any, Tensor] | None) -> None:
    """Give a model on the meta device its weights, layer by layer, so that never more than one lies there unpacked."""
    made: dict[int, nn.Parameter] = {}  # tied weights stay tied
    dtype = model.dtype
    for prefix, module in model.named_modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if id(p) not in made:
                is_packed = isinstance(p, Params4bit)
                value = _value(f"{prefix}.{name}", p.shape, dtype if is_packed else p.dtype, device, shared)
                made[id(p)] = _packed(value, device, quantization_config) if is_packed else nn.Parameter(value)
            module.register_parameter(name, made[id(p)])
        if getattr(module, "inv_freq", None) is not None:  # buffers that are computed, not loaded
            fresh = type(module)(config=module.config).to(device)
            for name, buffer in fresh.named_buffers():
                module.register_buffer(name, buffer, persistent=False)


def _value(name: str, shape: torch.Size, dtype: torch.dtype, device: str, shared: dict[Any, Tensor] | None) -> Tensor:
    key = (name, shape, dtype)
    if shared is not None and key in shared:
        return shared[key]
    value = torch.empty(shape, dtype=dtype, device=device)
    if len(shape) > 1:
        value.normal_(std=0.02)
    else:
        value.fill_(0.0 if name.endswith("bias") else 1.0)
    if shared is not None:
        shared[key] = value
    return value


def _packed(value: Tensor, device: str, config: Any) -> Params4bit:
    return Params4bit(
        value,
        requires_grad=False,
        quant_type=config.bnb_4bit_quant_type,
        compress_statistics=config.bnb_4bit_use_double_quant,
        quant_storage=config.bnb_4bit_quant_storage,
    ).to(device)
