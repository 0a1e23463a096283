"""A language model's own answer to the question of `judge`: what it can tell without any label.

The log-odds of Yes against No after "Was that a helpful, correct and well-written response?" are the difference of two
rows of the output matrix, on the state after the question and the last layer: a linear head like any other. A bias of
the output matrix, which few models have, would shift all responses alike, and is left out.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ser_lightning.errors import UserError
from ser_lightning.models.backbone import Backbone
from ser_lightning.models.loading import meta_model
from ser_lightning.models.policy import load_language_model

WORDS = ("Yes", "No")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def answer_direction(backbone: Backbone, tokenizer: PreTrainedTokenizerBase, may_load: bool = True) -> Tensor:
    """(H,) float32, the output matrix's row of Yes minus that of No, each word's first token.

    Args:
        backbone: of a language model.
        tokenizer: of the same model.
        may_load: load the language model where the rows cannot be read by themselves.

    Raises:
        UserError: both words begin with the same token, or the rows are not to be had.
    """
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[0] for word in WORDS)
    if yes == no:
        raise UserError(f"{backbone.path}: got a tokenizer that begins {' and '.join(WORDS)} alike; take another model")
    rows = _read_rows(backbone, [yes, no])
    if rows is None and may_load:
        lm: Any = load_language_model(backbone, "cpu")
        rows = lm.get_output_embeddings().weight[[yes, no]].detach()
    if rows is None:
        raise UserError(f"{backbone.path}: got no safetensors file with an output matrix; save the model as one")
    return rows[0].float() - rows[1].float()


def _read_rows(backbone: Backbone, ids: list[int]) -> Tensor | None:
    """Rows of the output matrix out of a safetensors file, which may hold gigabytes more; None if there is none."""
    if backbone.gguf_file:
        return None
    try:
        lm: Any = meta_model(AutoModelForCausalLM, replace(backbone, quantize="none"))
    except (OSError, ValueError):  # no language model
        return None
    is_tied = lm.config.get_text_config().tie_word_embeddings
    # Files may hold a matrix that the config says is tied; transformers then takes the file's word for it.
    matrices = [lm.get_output_embeddings(), *([lm.get_input_embeddings()] if is_tied else [])]
    for matrix in filter(None, matrices):
        name = f"{next(name for name, module in lm.named_modules() if module is matrix)}.weight"
        file = _file_with(backbone.resolved_path(), name)
        if file is not None:
            with safe_open(file, "pt") as tensors:
                rows = tensors.get_slice(name)
                return torch.stack([rows[i] for i in ids])
    return None


def _file_with(model: str, name: str) -> Path | None:
    """The safetensors file of a model that holds a tensor."""
    if (index := _file(model, _INDEX)) is not None:
        held = json.loads(index.read_text(encoding="utf-8"))["weight_map"].get(name)
        return _file(model, held) if held else None
    if (file := _file(model, _WEIGHTS)) is None:
        return None
    with safe_open(file, "pt") as tensors:
        return file if name in tensors.keys() else None  # noqa: SIM118  it is no mapping


def _file(model: str, name: str) -> Path | None:
    """A file of a model, in its folder or the cache of the Hub."""
    found = Path(model) / name if Path(model).is_dir() else try_to_load_from_cache(model, name)
    return Path(found) if isinstance(found, str | Path) and Path(found).is_file() else None
