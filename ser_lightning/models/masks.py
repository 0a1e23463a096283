"""Attention masks of packed rows, and the models for which a packed row gives what each sequence gives alone.

transformers takes a mask of four dimensions as it is, in place of its own: a model's sliding window would be lost
without a word. So windows are put into the mask here, on positions and not on places in the row, and a model whose
masks are not known is not packed.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flex_attention_mask, sdpa_mask

from ser_lightning.data.layouts import PADDED, Layout
from ser_lightning.errors import UserError
from ser_lightning.models.loading import is_meta, position_arguments, unwrapped
from ser_lightning.records import Inputs, Packed, Padded, Padding

LayoutName = Literal["auto", "shared_prompt", "padded"]

CPU_BATCH_TOKENS = 1024
"""Most tokens in a packed batch on a CPU. With more, activations leave its caches, and every layer waits for memory."""
BLOCK = 128
"""Rows of FlexAttention are whole blocks of this many tokens: one kernel, with no checks at borders, fits them all."""
MOST_COMPILATIONS = 32
"""A model takes four or six: the first length of rows and all others, each kind of mask, with and without gradients."""
PACKED_ATTENTION = "packed_flex_attention"
"""What transformers calls `_flex_attention`."""
PADDED_ATTENTION = "padded_sdpa"
"""What transformers calls SDPA with the masks of `_padded_mask`."""
_padding: ContextVar[Padding] = ContextVar("padding", default="unknown")

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
        wanted: `auto` shares prompts where that is exact and says so where it is not. On CUDA it first tries it in
            small, and pads where FlexAttention fails; `shared_prompt` does not ask.
        model: a transformers model with a head, as its body is wrapped.
        device: where it computes; on `meta` nothing does, and no layout is better than another.
        where: how errors call the setting.

    Raises:
        UserError: there is no such layout, or prompts are to be shared where that would not be exact.
    """
    if wanted not in get_args(LayoutName):
        raise UserError(f"{where}: got {wanted!r}; use {', '.join(get_args(LayoutName))}")
    if is_meta(device):
        return PADDED
    kind = torch.device(device).type
    if wanted == "padded":
        return _padded(model, kind)
    is_cpu = kind == "cpu"
    problem = sharing_problem(model, is_cpu) if kind in ("cpu", "cuda") else f"packed rows do not run on {kind}"
    if (
        problem is None
        and wanted == "auto"
        and not is_cpu
        and torch.cuda.is_available()
        and model.device.type != "meta"
    ):
        problem = packing_failure(model, device)
    if problem is None:
        if is_cpu:
            return Layout(shares_prompts=True, max_batch_tokens=CPU_BATCH_TOKENS)
        model.set_attn_implementation(PACKED_ATTENTION)
        # After its limit TorchDynamo runs FlexAttention uncompiled, with whole tables of scores in memory.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_COMPILATIONS)
        return Layout(shares_prompts=True, is_one_row=True, row_multiple=BLOCK)
    if wanted == "shared_prompt":
        raise UserError(f"{where}: got shared_prompt, but {problem}; use auto or padded")
    rank_zero_info(f"Layout: padded, as {problem}.")
    return _padded(model, kind)


def _padded(model: PreTrainedModel, kind: str) -> Layout:
    """The padded layout; on CUDA with masks for whose sake the host does not wait."""
    if kind == "cuda" and model.config.model_type in _MASKS and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(PADDED_ATTENTION)
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


def packing_failure(model: PreTrainedModel, device: torch.device | str) -> str | None:
    """Why packed rows do not do on a device, None if they do: FlexAttention compiles and gives what padding gives.

    Tried with one random layer of each kind that the model has, so that it takes no memory and any strategy allows it;
    what is compiled here the run uses again.

    Args:
        model: a transformers model with a head.
        device: where it will compute.
    """
    config: Any = copy.deepcopy(model.config.get_text_config())
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    config.num_hidden_layers = len(set(kinds))
    if getattr(config, "layer_types", None):
        config.layer_types = sorted(set(kinds))
    config.vocab_size, config.pad_token_id, config.intermediate_size = 64, 0, 64
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    is_half = dtype != torch.float32 or bool(getattr(model, "is_quantized", False))
    rows = [[*range(3, 63)] * 4, [*range(3, 63)] * 2 + [*range(40, 60)], [*range(5, 50)]]  # two begin alike
    found = []
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        try:
            body = AutoModel.from_config(config, dtype=torch.bfloat16 if is_half else dtype).to(device)
            for weight in body.parameters():
                if weight.dim() > 1:
                    torch.nn.init.normal_(weight, std=2 * weight.shape[-1] ** -0.5)  # attention far from even
            for attention, layout in (("sdpa", PADDED), (PACKED_ATTENTION, Layout(True, None, True, BLOCK))):
                body.set_attn_implementation(attention)
                inputs = layout.lay_out(rows, [0, 0, 1], 0).to(device)
                states = last_hidden(body, inputs).flatten(0, 1)[inputs.last_places].float()
                # No loss of the states' length, which the norm before them fixes: its slope would be rounding alone.
                loss = (states * torch.linspace(-1, 1, states.shape[-1], device=device)).sum()
                [slope] = torch.autograd.grad(loss, [body.get_input_embeddings().weight])
                found.append(torch.cat([states.detach().flatten(), slope.float().flatten()]))
        except Exception as error:  # whatever a compiler may raise; the reason is said, and padding works anyway
            return f"FlexAttention fails on this device ({type(error).__name__}: {str(error).strip().splitlines()[0]})"
    padded, packed = found
    difference = float((packed - padded).norm() / padded.norm())
    if not difference < (0.1 if is_half else 0.02):  # nor is NaN
        return f"packed rows differ from padded ones by {difference:.2g} on this device"
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
        with padded(inputs.padding):
            return body(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, **extra).last_hidden_state
    extra = position_arguments(body, torch.ones_like(inputs.input_ids)) | {"position_ids": inputs.position_ids}
    masks = attention_masks(cast(PretrainedConfig, unwrapped(body).config), inputs)
    return body(input_ids=inputs.input_ids, attention_mask=masks, **extra).last_hidden_state


@contextmanager
def padded(padding: Padding) -> Iterator[None]:
    """What `PADDED_ATTENTION` is told of the attention masks in this context."""
    token = _padding.set(padding)
    try:
        yield
    finally:
        _padding.reset(token)


def _padded_mask(
    *,
    q_length: int,
    kv_length: int,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **kwargs: Any,
) -> Tensor | None:
    """transformers' mask for SDPA, without a look at the values of the attention mask.

    transformers looks whether there is padding at all, in each forward pass, for which the host waits for a GPU. Here
    it is told. A causal row that is padded on the right needs no mask at all: no real token sees what stands after it.
    """
    padding = _padding.get()
    is_whole = q_length == kv_length and (local_size is None or kv_length < local_size)
    if padding == "none" or (padding == "right" and is_whole and allow_is_causal_skip):
        attention_mask = None
    may_skip = attention_mask is None or padding == "unknown"
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip and may_skip,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip and may_skip,
        **kwargs,
    )


def attention_masks(config: PretrainedConfig, packed: Packed) -> Tensor | BlockMask | dict[str, Tensor | BlockMask]:
    """What a model takes as its attention mask for packed rows.

    Args:
        config: the body's; `sharing_problem` has nothing against it.
        packed: the rows.
    """
    make = _MAKERS[config._attn_implementation]
    masks = {kind: make(packed, window) for kind, window in _windows(config).items()}
    return masks if _MASKS[config.model_type] == "by_layer" else next(iter(masks.values()))


def visible_runs(packed: Packed, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The two runs of columns that each token attends to, up to its own column: [0] to [1] excluded, and [2] onwards.

    A window only moves where the runs begin, on positions and not on columns: kernels see one kind of mask.

    Args:
        packed: the rows.
        window: how many positions back a token sees, itself included; None = all.

    Returns:
        Three times (N, L) int32.
    """
    if window is None:
        return packed.group_start, packed.shared_end, packed.part_start
    columns = torch.arange(packed.part_start.shape[1], dtype=torch.int32, device=packed.part_start.device)
    first_shared = packed.group_start + (packed.position_ids.int() - window + 1).clamp_min(0)
    return first_shared, packed.shared_end, torch.maximum(packed.part_start, columns - window + 1)


def is_visible(runs: tuple[Tensor, Tensor, Tensor], row: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Whether one token of a row may attend to another, bool, for indices of any shape.

    Args:
        runs: what `visible_runs` gave.
        row: number of the row.
        query: column of the token that attends.
        key: column of the token that is attended to.
    """
    first_shared, shared_end, first_own = (run[row, query] for run in runs)
    return (key <= query) & ((key >= first_own) | ((key >= first_shared) & (key < shared_end)))


def _dense_mask(packed: Packed, window: int | None) -> Tensor:
    """(N, 1, L, L) bool."""
    rows, columns = (torch.arange(n, device=packed.part_start.device) for n in packed.part_start.shape)
    return is_visible(visible_runs(packed, window), rows[:, None, None], columns[:, None], columns)[:, None]


def _added_mask(packed: Packed, window: int | None) -> Tensor:
    """(N, 1, L, L) float, for attention that adds its mask to the scores: True would be a 1 there."""
    hidden = ~_dense_mask(packed, window)
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, torch.finfo(torch.bfloat16).min)


def _block_mask(packed: Packed, window: int | None) -> BlockMask:
    """`create_block_mask` would make all (L, L) answers first, 4 GiB of them for 65,536 tokens; this looks at blocks.

    Runs begin and end in the order of the columns (but for shared ones in a window), so the least and the largest of a
    block of queries say which blocks of keys any of them sees, and which all of them see in whole.
    """
    runs = visible_runs(packed, window)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return is_visible(runs, batch, query, key)

    blocks = [run.unflatten(1, (-1, BLOCK))[:, :, None] for run in runs]  # (N, blocks of queries, 1, BLOCK)
    (least_shared, shared_end, least_own), (most_shared, _, most_own) = zip(
        *(b.aminmax(dim=-1) for b in blocks), strict=True
    )
    first = torch.arange(0, packed.part_start.shape[1], BLOCK, device=packed.part_start.device)
    last, is_before = first + BLOCK - 1, first < first[:, None]
    is_seen = is_before & ((last >= least_own) | ((last >= least_shared) & (first < shared_end)))
    is_full = is_before & ((first >= most_own) | ((first >= most_shared) & (last < shared_end)))
    is_partial = (is_seen & ~is_full) | (first == first[:, None])
    return BlockMask.from_kv_blocks(*_listed(is_partial), *_listed(is_full), BLOCK_SIZE=BLOCK, mask_mod=visible)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which, those first; from (N, n, n) bool."""
    blocks = blocks[:, None]
    return blocks.sum(-1, dtype=torch.int32), blocks.int().argsort(dim=-1, descending=True, stable=True).int()


def _flex_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """transformers' FlexAttention in the number format of autocast, which knows SDPA but not FlexAttention.

    With weights in float32 the rotary embeddings leave queries and keys in float32, beside values in bfloat16, which
    FlexAttention refuses; 4-bit layers leave all three in float32, which is slow.
    """
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        query, key, value = (states.to(torch.get_autocast_dtype(kind)) for states in (query, key, value))
    return flex_attention_forward(module, query, key, value, mask, **kwargs)


AttentionInterface.register(PACKED_ATTENTION, _flex_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, flex_attention_mask)
AttentionInterface.register(PADDED_ATTENTION, sdpa_attention_forward)
AttentionMaskInterface.register(PADDED_ATTENTION, _padded_mask)


_MAKERS: dict[str, Callable[[Packed, int | None], Tensor | BlockMask]] = {
    "sdpa": _dense_mask,
    "eager": _added_mask,
    "flex_attention": _block_mask,
    PACKED_ATTENTION: _block_mask,
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
