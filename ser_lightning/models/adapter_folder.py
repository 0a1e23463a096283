"""A peft folder of a reward model, as `export --form adapter` writes it: an adapter and a head, which name their base.

What such a folder has no place for, the scale of the rewards and the bits of the base, lies in a file of its own.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from ser_lightning.errors import UserError
from ser_lightning.models.loading import (
    is_meta,
    keep_differentiable,
    meta_arguments,
    quantization_config,
    quiet_load_report,
)

ADAPTER = "adapter_config.json"
SCALE = "reward_scale.json"
_NAMES = ("reward_zero", "reward_temperature", "reward_template_hash")


def write_scale(folder: Path, zero: float, temperature: float, template_hash: str, quantize: str) -> None:
    """Write the scale, and what the adapter was trained on."""
    values = dict(zip(_NAMES, (zero, temperature, template_hash), strict=True))
    (folder / SCALE).write_text(json.dumps({**values, "base_quantize": quantize}, indent=2) + "\n")


def load_adapter_folder(
    folder: Path, trust_remote_code: bool = False, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """The base with the adapter on it; its config holds the scale as that of a merged export does.

    Args:
        folder: has an `adapter_config.json`; of other people's, without a scale, the base is loaded as it was saved.
        device: `meta` reads no weights of the base.

    Raises:
        UserError: the base cannot be loaded, is another kind of model, or the folder has no head.
    """
    found: dict[str, Any] = json.loads((folder / SCALE).read_text()) if (folder / SCALE).is_file() else {}
    path = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    bits = {"quantization_config": quantization_config()} if found.get("base_quantize") == "nf4" else {}
    try:
        with quiet_load_report():
            base, report = AutoModelForSequenceClassification.from_pretrained(
                path,
                num_labels=1,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
                **bits,
                **meta_arguments(device),
            )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"got an adapter whose base {path} cannot be loaded ({reason}); put the base there, or change "
            f"base_model_name_or_path in its {ADAPTER}"
        ) from error
    prefix = f"{base.base_model_prefix}."
    if missing := sorted(key for key in report["missing_keys"] if key.startswith(prefix) and ".pooler." not in key):
        raise UserError(f"got an adapter whose base {path} lacks {missing[0]}; give the base that it was trained on")
    try:
        model = PeftModel.from_pretrained(base, str(folder), low_cpu_mem_usage=is_meta(device))
    except (KeyError, RuntimeError) as error:  # a tensor is missing, or of another shape
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"got an adapter without the right weights ({reason}); give a whole reward model") from error
    wanted, saved = get_peft_model_state_dict(model).keys(), load_peft_weights(str(folder), device="cpu").keys()
    if wanted != saved or not any(f".{name}." in key for key in saved for name in ("score", "classifier", "head")):
        odd = sorted(wanted ^ saved)[:1] or ["its head"]
        raise UserError(f"got an adapter without the right weights, such as {odd[0]}; give a whole reward model")
    if bits:
        keep_differentiable(model)
    plain: PreTrainedModel = model.get_base_model()
    for name in _NAMES:
        if name in found:
            setattr(plain.config, name, found[name])
    return plain
