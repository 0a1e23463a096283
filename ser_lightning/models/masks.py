"""Attention masks of packed rows, and the models for which a packed row gives what each sequence gives alone.

transformers takes a mask of four dimensions as it is, in place of its own: a model's sliding window would be lost
without a word. So windows are put into the mask here, on positions and not on places in the row, and a model whose
masks are not known is not packed.
"""

import inspect
from collections.abc import Callable
from typing import Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PretrainedConfig, PreTrainedModel

from ser_lightning.data.layouts import PADDED, Layout
from ser_lightning.errors import UserError
from ser_lightning.models.loading import position_arguments, unwrapped
from ser_lightning.records import Inputs, Packed, Padded

LayoutName = Literal["auto", "shared_prompt", "padded"]

CPU_BATCH_TOKENS = 1024
"""Most tokens in a packed batch on a CPU. With more, activations leave its caches, and every layer waits for memory."""
CUDA_ROW_MULTIPLE = 1024
"""FlexAttention is compiled for few lengths of rows."""

_MASKS: dict[str, Literal["full", "window", "by_layer"]] = {
    **dict.fromkeys(("gemma", "gpt2", "gpt_neox", "llama", "olmo", "olmo2", "phi", "stablelm"), "full"),
    **dict.fromkeys(("mistral", "mixtral", "phi3", "qwen3_moe", "starcoder2"), "window"),
    **dict.fromkeys(("gemma2", "gemma3_text", "qwen2", "qwen2_moe", "qwen3", "smollm3"), "by_layer"),
}  # type: ignore[assignment]
"""Which masks a kind of model takes: one without a window, one with the window of all layers, or one for each kind of
layer. `tests/test_masks.py` holds each of them to its own padded scores."""


def choose_layout(wanted: LayoutName, model: PreTrainedModel, device: torch.device | str, where: str) -> Layout:
    """The layout for a model on a device; on CUDA the model's attention becomes FlexAttention where prompts are shared.

    Args:
        wanted: `auto` shares prompts where that is exact and says so where it is not. On CUDA, where packed rows have
            never run yet, it waits to be asked with `shared_prompt`.
        model: a transformers model with a head, as its body is wrapped.
        device: where it computes.
        where: how errors call the setting.

    Raises:
        UserError: prompts are to be shared where that would not be exact.
    """
    if wanted == "padded":
        return PADDED
    kind = torch.device(device).type
    is_cpu = kind == "cpu"
    problem = sharing_problem(model, is_cpu) if kind in ("cpu", "cuda") else f"packed rows do not run on {kind}"
    if problem is None and wanted == "auto" and not is_cpu:
        problem = "packed rows on CUDA are new; ask for them with shared_prompt"
    if problem is None:
        if is_cpu:
            return Layout(shares_prompts=True, max_batch_tokens=CPU_BATCH_TOKENS)
        model.set_attn_implementation("flex_attention")
        return Layout(shares_prompts=True, is_one_row=True, row_multiple=CUDA_ROW_MULTIPLE)
    if wanted == "shared_prompt":
        raise UserError(f"{where}: got shared_prompt, but {problem}; use auto or padded")
    rank_zero_info(f"Layout: padded, as {problem}.")
    return PADDED


def sharing_problem(model: PreTrainedModel, is_cpu: bool) -> str | None:
    """Why a packed row would not give what each sequence gives by itself, None if it does.

    Args:
        model: a transformers model with a head.
        is_cpu: a CPU takes a dense mask, other devices need FlexAttention.
    """
    body = unwrapped(getattr(model, model.base_model_prefix))
    config = model.config
    kind = str(config.model_type)
    if "position_ids" not in inspect.signature(body.forward).parameters:
        return f"a {kind} takes no position ids"
    if kind not in _MASKS or not getattr(config, "is_causal", True) or _is_bidirectional(config):
        return f"packed rows are not known to be exact for a {kind}"
    if unknown := set(_windows(config)) - {"full_attention", "sliding_attention"}:
        return f"it is not known how a {kind} masks in layers of {', '.join(sorted(unknown))}"
    rope = str((getattr(config, "rope_parameters", None) or {}).get("rope_type", "default"))
    if rope in ("dynamic", "longrope"):
        return f"{rope} embeddings depend on the longest sequence of a batch"
    attention = config._attn_implementation
    if attention not in _MAKERS:
        return f"the attention implementation {attention} takes no masks of one's own"
    if is_cpu and attention == "flex_attention":
        return "FlexAttention does not train on a CPU"
    if not is_cpu and not model._supports_flex_attn:
        return f"a {kind} has no FlexAttention"
    if not is_cpu and float(getattr(config, "attention_dropout", False)):
        return "FlexAttention has no attention dropout"
    return None


def last_hidden(body: nn.Module, inputs: Inputs) -> Tensor:
    """The last hidden states of a decoder's body, in the layout of its inputs.

    Args:
        body: as peft may wrap it.
        inputs: R sequences.

    Returns:
        (R, T, H) of padded sequences, (N, L, H) of packed ones, with `Packed.places` to find them.
    """
    if isinstance(inputs, Padded):
        extra = position_arguments(body, inputs.attention_mask)
        return body(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, **extra).last_hidden_state
    extra = position_arguments(body, torch.ones_like(inputs.input_ids)) | {"position_ids": inputs.position_ids}
    masks = attention_masks(cast(PretrainedConfig, unwrapped(body).config), inputs)
    return body(input_ids=inputs.input_ids, attention_mask=masks, **extra).last_hidden_state


def attention_masks(config: PretrainedConfig, packed: Packed) -> Tensor | BlockMask | dict[str, Tensor | BlockMask]:
    """What a model takes as its attention mask for packed rows.

    Args:
        config: the body's; `sharing_problem` has nothing against it.
        packed: the rows.
    """
    make = _MAKERS[config._attn_implementation]
    masks = {kind: make(packed, window) for kind, window in _windows(config).items()}
    return masks if _MASKS[config.model_type] == "by_layer" else next(iter(masks.values()))


def is_visible(packed: Packed, row: Tensor, query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """Whether one token of a row may attend to another, bool, for indices of any shape.

    Args:
        packed: the rows.
        row: number of the row.
        query: column of the token that attends.
        key: column of the token that is attended to.
        window: how many positions back a token sees, itself included; None = all.
    """
    owner = packed.sequence[row, key]
    is_own = (owner < 0) | (owner == packed.sequence[row, query])
    sees = (key <= query) & (packed.group[row, query] == packed.group[row, key]) & is_own
    if window is not None:
        positions = packed.position_ids
        sees = sees & (positions[row, query] - positions[row, key] < window)
    return sees


def _dense_mask(packed: Packed, window: int | None) -> Tensor:
    """(N, 1, L, L) bool."""
    rows, columns = (torch.arange(n, device=packed.group.device) for n in packed.group.shape)
    return is_visible(packed, rows[:, None, None], columns[:, None], columns, window)[:, None]


def _added_mask(packed: Packed, window: int | None) -> Tensor:
    """(N, 1, L, L) float, for attention that adds its mask to the scores: True would be a 1 there."""
    hidden = ~_dense_mask(packed, window)
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, torch.finfo(torch.bfloat16).min)


def _block_mask(packed: Packed, window: int | None) -> BlockMask:
    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return is_visible(packed, batch, query, key, window)

    num_rows, length = packed.group.shape
    return create_block_mask(visible, num_rows, None, length, length, device=str(packed.group.device))


_MAKERS: dict[str, Callable[[Packed, int | None], Tensor | BlockMask]] = {
    "sdpa": _dense_mask,
    "eager": _added_mask,
    "flex_attention": _block_mask,
}


def _windows(config: PretrainedConfig) -> dict[str, int | None]:
    """The window of each kind of layer that a model has."""
    window = getattr(config, "sliding_window", None)
    style = _MASKS[config.model_type]
    if style == "full":
        return {"full_attention": None}
    if style == "window":
        return {"full_attention": None} if window is None else {"sliding_attention": window}
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(set(config.layer_types))}


def _is_bidirectional(config: PretrainedConfig) -> bool:
    return bool(getattr(config, "use_bidirectional_attention", None))
