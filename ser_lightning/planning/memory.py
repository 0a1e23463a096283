"""How many weights a model has and what memory a training of it takes, from its config alone.

The model is loaded on the meta device, where tensors have shapes and no values. Counts of weights and bytes of weights,
gradients and optimiser state are exact; activations are an estimate.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ser_lightning.models.backbone import Backbone
from ser_lightning.models.reward_model import RewardModel
from ser_lightning.training.strategies import kept_whole, layers_of
from ser_lightning.utils.collectives import own_part

KINDS = ("embeddings", "body", "adapters", "head")
_NF4_BLOCK, _ABSMAX_BLOCK = 64, 256
_BNB_BLOCK = 256


# Weights


@dataclass(frozen=True)
class Weights:
    """The weights of one kind.

    Attributes:
        num_bytes: of all of them, with what 4-bit layers need to be read.
    """

    trained: int
    frozen: int
    num_bytes: int


def count_weights(reward_model: RewardModel) -> dict[str, Weights]:
    """The weights of a meta reward model by their kind, one of `KINDS`; tied ones count once."""
    embeddings = {id(m.weight) for m in reward_model.modules() if isinstance(m, nn.Embedding)}
    heads = tuple(f"model.{name}." for name in reward_model.head_names)
    found = {kind: [0, 0, 0] for kind in KINDS}
    for name, p in reward_model.named_parameters():
        is_embedding = id(p) in embeddings
        kind = "head" if name.startswith(heads) else "adapters" if "lora_" in name else "body"
        counts = found["embeddings" if is_embedding else kind]
        counts[0 if p.requires_grad else 1] += p.numel()
        counts[2] += weight_bytes(p)
    return {kind: Weights(*counts) for kind, counts in found.items()}


def weight_bytes(p: Tensor) -> int:
    """Bytes of a meta weight, as it will be loaded."""
    return nf4_bytes(p.numel()) if _is_4bit(p) else p.numel() * p.element_size()


def nf4_bytes(num_weights: int) -> int:
    """Bytes of one layer's weights in nf4 with double quantisation, as bitsandbytes lays them out.

    Two weights a byte; the largest of each block of 64 in 8 bits, and of each 256 of these the largest in float32;
    their mean in float32; the tables of 16 and of 256 values that both steps look up.
    """
    blocks = ceil(num_weights / _NF4_BLOCK)
    return ceil(num_weights / 2) + blocks + 4 * ceil(blocks / _ABSMAX_BLOCK) + 4 + 4 * (16 + 256)


def _is_4bit(p: Tensor) -> bool:
    return type(p).__name__ == "Params4bit"


def trained_weights(module: nn.Module) -> list[nn.Parameter]:
    """What the optimiser gets."""
    return [p for p in module.parameters() if p.requires_grad]


def gradient_bytes(parameters: Iterable[Tensor]) -> int:
    """Each gradient has the number format of its weight."""
    return sum(p.numel() * p.element_size() for p in parameters)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimiser's state after its first step, for meta parameters.

    PyTorch's optimisers take a step on the meta device, so that whatever they keep is counted. Those of bitsandbytes
    run on real devices only: two states a weight (one for those that keep one), in 32 bits or in 8 with a float32 for
    each block of 256. Any other that cannot step there counts as two states of the weights' own number format.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if type(optimizer).__module__.startswith("bitsandbytes"):
        return sum(_bnb_state_bytes(optimizer, p.numel()) for p in parameters)
    for p in parameters:
        p.grad = torch.empty_like(p)
    try:
        optimizer.step()
    except (NotImplementedError, RuntimeError, TypeError):  # it looks at values, which meta tensors have not
        return 2 * gradient_bytes(parameters)
    finally:
        optimizer.zero_grad()
    tensors = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return sum(value.numel() * value.element_size() for value in tensors)


def _bnb_state_bytes(optimizer: Any, numel: int) -> int:
    kinds = {kind.__name__ for kind in type(optimizer).__mro__}
    num_states = 1 if "Optimizer1State" in kinds else 2
    is_8bit = optimizer.args.optim_bits == 8 and numel >= optimizer.args.min_8bit_size
    return num_states * (numel + 4 * ceil(numel / _BNB_BLOCK) if is_8bit else 4 * numel)


# Activations


@dataclass(frozen=True)
class Shape:
    """What activations depend on.

    Attributes:
        layers: of the body.
        hidden: H, width of a state.
        inner: width of a layer's MLP.
        key_value: width of all keys of a layer, and of all values.
        mlp_tensors: what an MLP keeps of its inner width: 3 where it is gated (2 with Liger's kernels), else 2.
        norm_bytes: of a number in the input of a norm as the norm keeps it.
        adapters: bytes that a layer's adapters keep of a token.
        num_bytes: of a number in the body's computation, 2 or 4.
        residual_bytes: of a number between layers: in the format of the embeddings.
    """

    layers: int
    hidden: int
    inner: int
    key_value: int
    mlp_tensors: int
    norm_bytes: int
    adapters: int
    num_bytes: int
    residual_bytes: int


def shape_of(model: nn.Module, backbone: Backbone, precision: str, device: str, adapter: str = "default") -> Shape:
    """The shape of a model.

    Args:
        model: a transformers model with a head, on any device, also meta; its body may be wrapped by peft.
        adapter: the one that is trained; a body may have several.
    """
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    body: nn.Module = getattr(model, str(model.base_model_prefix))
    layers, hidden, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or hidden // heads
    names = [name for name, _ in body.named_modules()]
    is_half = backbone.dtype == "bfloat16" or precision.startswith(("bf16", "16"))
    is_gated = any("gate" in name for name in names)
    is_fused = backbone.use_liger_kernel and device == "cuda"
    residual = model.get_input_embeddings().weight.element_size()  # type: ignore[operator, union-attr]
    return Shape(
        layers=layers,
        hidden=hidden,
        inner=getattr(config, "intermediate_size", None) or 4 * hidden,
        key_value=(getattr(config, "num_key_value_heads", None) or heads) * head_size,
        mlp_tensors=3 if is_gated and not is_fused else 2,
        norm_bytes=residual if is_fused else 4,
        adapters=_adapter_bytes(body, backbone, precision, device, adapter, residual) // layers,
        num_bytes=2 if is_half else 4,
        residual_bytes=residual,
    )


def _adapter_bytes(
    body: nn.Module, backbone: Backbone, precision: str, device: str, adapter: str, residual_bytes: int
) -> int:
    """Bytes that an adapter keeps of a token: its inputs, the masks of the dropout on these, and inner states."""
    end = f".lora_A.{adapter}"
    inner = {name: m for name, m in body.named_modules() if name.endswith(end) and isinstance(m, nn.Linear)}
    kept = 2 if precision.endswith("-mixed") else 4
    # A CPU multiplies by a mask of numbers, a GPU keeps one of booleans.
    mask = 0 if backbone.lora.dropout == 0 else 4 if device == "cpu" else 1
    inputs = [(name.split(".")[:-3], m.in_features) for name, m in inner.items()]
    if not mask and kept == residual_bytes:  # neither cast nor masked: queries, keys and values keep the same tensor
        inputs = [entry for number, entry in enumerate(inputs) if entry not in inputs[:number]]
    return (kept + mask) * sum(width for _, width in inputs) + kept * sum(m.out_features for m in inner.values())


def training_activations(shape: Shape, train: str, checkpointing: bool, num_tokens: int) -> int:
    """Estimated bytes of a micro-batch at the peak: what the forward pass keeps, and gradients within a layer.

    A layer keeps for each token, with s bytes a number: the inputs of both norms (8 H, in float32); queries, keys,
    values and what attention gives, whose kernels keep no table of scores (s (2 H + 2 K)); the inner states of the MLP
    (3 s I, 2 where it is not gated). Where its own weights are trained, also the inputs of all linear layers and the
    normed states after both norms' scales (s (5 H + I)); where adapters are, what these keep. With checkpointing every
    layer keeps its input alone, and one layer at a time the rest. After the last one stands a norm (4 H). The backward
    pass of an MLP has two gradients of its inner states at a time (2 s I).

    Against what six layers of a small Llama have in memory at the peak this is 0.83 to 1.17 of it.
    """
    if train == "head":
        return 4 * shape.hidden  # a state a sequence; the body runs without gradients
    s, hidden, inner = shape.num_bytes, shape.hidden, shape.inner
    layer = 2 * shape.norm_bytes * hidden + s * (2 * hidden + 2 * shape.key_value + shape.mlp_tensors * inner)
    if train == "full":
        layer += s * (5 * hidden + inner)
    else:
        layer += shape.adapters
    kept = shape.layers * shape.residual_bytes * hidden + layer if checkpointing else shape.layers * layer
    return num_tokens * (kept + 4 * hidden + 2 * s * inner)


def labelling_activations(shape: Shape, num_tokens: int) -> int:
    """Estimated bytes at a layer's widest place, without gradients, which is within its MLP.

    There are four states (of the layer before, of the residual stream after attention, normed, and being added), and
    the MLP's inner states, of which an adapter's output is one more while it is added.
    """
    num_inner = shape.mlp_tensors + (shape.adapters > 0)
    return num_tokens * (4 * shape.residual_bytes * shape.hidden + shape.num_bytes * num_inner * shape.inner)


def workspace_bytes(module: nn.Module, precision: str) -> int:
    """Copies of weights in half precision: all trained ones in autocast, and the largest 4-bit layer unpacked."""
    looked_up = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    multiplied = (p for p in trained_weights(module) if p.dim() > 1 and id(p) not in looked_up)
    is_cast = precision.endswith("-mixed")
    copied = sum(p.numel() for p in multiplied if p.dtype == torch.float32) if is_cast else 0
    return 2 * (copied + max((p.numel() for p in module.parameters() if _is_4bit(p)), default=0))


# Budgets

CPU_TOKENS = 1536, 4096
"""Small batches of like length beat large ones on a CPU; training and labelling."""
_USED_SHARE = 0.8
"""Of the memory that is left: activations are an estimate, and the allocator leaves gaps."""
CONTEXT_BYTES = 2**30
"""CUDA's own memory, and the kernels'."""
_LEAST_TOKENS, _MOST_TOKENS = 1024, 65536


def auto_budgets(
    reward_model: RewardModel, backbone: Backbone, precision: str, device: str, num_bytes: int
) -> tuple[int, int]:
    """Tokens in a batch of training and of labelling that fill a GPU: multiples of 1,024 between 1,024 and 65,536.

    They follow from the model and from all memory of the device, not from what happens to be free, so that a resumed
    run has them again. The optimiser is taken for one with two states in float32.

    Args:
        reward_model: on any device, also meta.
    """
    if device != "cuda":
        return CPU_TOKENS
    trained = [own_part(p) for p in trained_weights(reward_model)]
    fixed = CONTEXT_BYTES + held_bytes(reward_model.parameters()) + workspace_bytes(reward_model, precision)
    training = fixed + gradient_bytes(trained) + 8 * sum(p.numel() for p in trained)
    shape = shape_of(reward_model.model, backbone, precision, device)
    checkpointing = backbone.gradient_checkpointing
    # With a frozen body the largest batch is the one that computes its features.
    labelling_token = labelling_activations(shape, 1)
    training_token = training_activations(shape, backbone.train, checkpointing, 1)
    per_token = labelling_token if backbone.train == "head" else max(training_token, labelling_token)
    left = num_bytes - training
    return tokens_that_fit(left, per_token), tokens_that_fit(left, labelling_token)


def held_bytes(parameters: Iterable[Tensor]) -> int:
    """Bytes of weights as they lie on one device, or will lie where they are on the meta device."""
    return sum(
        nf4_bytes(p.numel()) if _is_4bit(p) and p.is_meta else own_part(p).numel() * p.element_size()
        for p in parameters
    )


def tokens_that_fit(num_bytes: int, bytes_per_token: int) -> int:
    """A budget in multiples of 1,024, from 1,024 to 65,536 tokens."""
    tokens = int(_USED_SHARE * num_bytes) // bytes_per_token // 1024 * 1024
    return max(_LEAST_TOKENS, min(_MOST_TOKENS, tokens))


# Shards


def keep_one_shard(reward_model: RewardModel, num_ranks: int) -> None:
    """Leave a meta reward model what one rank holds of it under `fsdp`: of each weight in shards, its rows.

    FSDP2 gives every rank as many rows as the first one, whose share is rounded up; the last ones only pad it.
    """
    kept = set(kept_whole(reward_model.body))
    for p in reward_model.body.parameters():
        if p not in kept:
            p.data = p.data[: ceil(len(p) / num_ranks)]


def gathered_bytes(reward_model: RewardModel) -> tuple[int, int]:
    """Estimated most bytes that are whole at one time of a body in shards, in training and in labelling.

    Embeddings and all else outside of layers, one layer that computes, and the next one twice: as it comes and as it is
    laid out. Where the body is trained, the backward pass has the next one once, and the gradients of a layer (or of
    what is outside, if that is larger) twice: as they are made and as they are sent.

    Args:
        reward_model: a meta reward model, before `keep_one_shard`.
    """
    kept = set(kept_whole(reward_model.body))

    def size(module: nn.Module) -> int:
        return gradient_bytes(p for p in module.parameters() if p not in kept)

    layers = [size(layer) for layer in layers_of(reward_model.body)]
    rest, largest = size(reward_model.body) - sum(layers), max(layers, default=0)
    labelling = rest + 3 * largest
    is_trained = not reward_model.is_body_frozen and not kept
    return rest + 2 * largest + 2 * max(rest, largest) if is_trained else labelling, labelling


# Devices


def device_of(accelerator: Any) -> str:
    """`cuda` or `cpu`, as the trainer's setting chooses; a GPU that is asked for by name need not be here."""
    name = str(accelerator).lower()
    return "cuda" if name in ("gpu", "cuda") or (name == "auto" and torch.cuda.is_available()) else "cpu"


def device_bytes(device: str) -> tuple[str, int]:
    """Whose memory counts, and all of it: the first GPU's, or the machine's where there is no GPU or it is not used."""
    if device == "cuda" and torch.cuda.is_available():
        return "GPU", int(torch.cuda.get_device_properties(0).total_memory)
    return "machine", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
