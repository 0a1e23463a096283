"""A folder with only what a run has trained, adapter and head, that names its base: see `export --form adapter`.

With an adapter it is a peft folder. `reward_scale.json` holds what peft has no place for: the scale of the rewards, how
the base was loaded, and the readings of a head that is no plain classifier on the whole base. Such a head has a file of
its own, and the adapter is that of the body. With a frozen body there is no adapter, and `reward_scale.json` names
the base.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from ser_lightning.errors import UserError
from ser_lightning.models.fingerprint import Identity, matrix_projections, other_matrix
from ser_lightning.models.loading import (
    is_meta,
    keep_differentiable,
    meta_arguments,
    quantization_config,
    quiet_load_report,
)
from ser_lightning.models.readings import READING_ENTRIES, forget_readings, noted_readings, shorten

ADAPTER = "adapter_config.json"
SCALE = "reward_scale.json"
HEAD = "reward_head.safetensors"
IDENTITY = "base_identity.json"
"""What the base was, as far as it is read: see `Identity`."""
BASE = "base_model_name_or_path"
"""Key that names the base: in the adapter's config, or in `SCALE` where there is no adapter."""
_NAMES = ("reward_zero", "reward_temperature", "reward_template_hash")


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder has what was trained without its base."""
    return any((folder / name).is_file() for name in (ADAPTER, SCALE))


def write_scale(
    folder: Path,
    zero: float,
    temperature: float,
    quantize: str,
    dtype: str,
    identity: Identity,
    more: Mapping[str, Any],
) -> None:
    """Write the scale and what the folder needs besides.

    Args:
        quantize: of the base in training.
        dtype: number format that the base is to be loaded in, whatever it is saved in.
        identity: of the base, as far as it is read, and of the template.
        more: where the head reads (`reading_entries`), and the `BASE` of a head without an adapter.
    """
    values = dict(zip(_NAMES, (zero, temperature, identity["template"]), strict=True))
    content = {**values, "base_quantize": quantize, "base_dtype": dtype, **more}
    (folder / SCALE).write_text(json.dumps(content, indent=2) + "\n")
    (folder / IDENTITY).write_text(json.dumps({name: identity[name] for name in ("matrices", "is_4bit")}) + "\n")


def load_adapter_folder(
    folder: Path, trust_remote_code: bool = False, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """The base with what was trained; its config holds scale and readings as that of a merged export does.

    Of a base whose readings are noted the layers above them are not loaded, and the head is `read_folder`'s to read.

    Args:
        folder: has an `adapter_config.json`, a `reward_scale.json` or both; of other people's, without a scale, the
            base is loaded as it was saved.
        device: `meta` reads no weights of the base.

    Raises:
        UserError: the base cannot be loaded, is another kind of model, or the folder has no head.
    """
    found: dict[str, Any] = json.loads((folder / SCALE).read_text()) if (folder / SCALE).is_file() else {}
    base, reads_own = _load_base(folder, found, trust_remote_code, device)
    if found.get("base_quantize") == "nf4":
        keep_differentiable(base)
    if not (folder / ADAPTER).is_file():
        return base
    adapted = getattr(base, base.base_model_prefix) if reads_own else base
    try:
        model = PeftModel.from_pretrained(adapted, str(folder), low_cpu_mem_usage=is_meta(device))
    except (KeyError, RuntimeError) as error:  # a tensor is missing, or of another shape
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"got an adapter without the right weights ({reason}); give a whole reward model") from error
    wanted, saved = get_peft_model_state_dict(model).keys(), load_peft_weights(str(folder), device="cpu").keys()
    has_head = reads_own or any(f".{n}." in key for key in saved for n in ("score", "classifier", "head"))
    if wanted != saved or not has_head:
        odd = sorted(wanted ^ saved)[:1] or ["its head"]
        raise UserError(f"got an adapter without the right weights, such as {odd[0]}; give a whole reward model")
    plain: PreTrainedModel = base if reads_own else model.get_base_model()
    return plain


def _load_base(
    folder: Path, found: dict[str, Any], trust_remote_code: bool, device: torch.device | str
) -> tuple[PreTrainedModel, bool]:
    """The base that an adapter names, and whether its head reads elsewhere than a plain classifier's."""
    is_named_by_peft = (folder / ADAPTER).is_file()
    path = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path if is_named_by_peft else found.get(BASE)
    code = {"trust_remote_code": trust_remote_code}
    bits: dict[str, Any] = {"quantization_config": quantization_config()} if found.get("base_quantize") == "nf4" else {}
    if "base_dtype" in found:
        bits["dtype"] = getattr(torch, found["base_dtype"])
    try:
        config = AutoConfig.from_pretrained(path, num_labels=1, **code)
        reads_own = _put_into(config, found)
        arguments = {"config": config, "ignore_mismatched_sizes": reads_own, **code, **bits, **meta_arguments(device)}
        with quiet_load_report():
            base, report = AutoModelForSequenceClassification.from_pretrained(
                path, output_loading_info=True, **arguments
            )
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"got an adapter whose base {path} cannot be loaded ({reason}); put the base there, or change "
            f"{BASE} in its {ADAPTER if is_named_by_peft else SCALE}"
        ) from error
    prefix = f"{base.base_model_prefix}."
    if missing := sorted(key for key in report["missing_keys"] if key.startswith(prefix) and ".pooler." not in key):
        raise UserError(f"got an adapter whose base {path} lacks {missing[0]}; give the base that it was trained on")
    if (folder / IDENTITY).is_file() and not is_meta(device):
        _check_base(base, f"{path}", json.loads((folder / IDENTITY).read_text()))
    return base, reads_own


def _check_base(base: PreTrainedModel, path: str, saved: dict[str, Any]) -> None:
    """`UserError` where the base is another one than was trained on; rewards on it would mean nothing."""
    base.requires_grad_(False)
    own = {name: values for name, values in matrix_projections(base).items() if name in saved["matrices"]}
    if name := other_matrix(saved, {"matrices": own, "is_4bit": saved["is_4bit"]}):
        raise UserError(
            f"got an adapter whose base {path} is another model than it was trained on ({name} is not what it was); "
            "put that model there"
        )


def _put_into(config: PretrainedConfig, found: dict[str, Any]) -> bool:
    """Give a base's config what the folder says of the head; whether that reads elsewhere than a plain classifier's."""
    forget_readings(config)  # those of a base that is an export itself
    for name in {*_NAMES, *READING_ENTRIES} & found.keys():
        setattr(config, name, found[name])
    noted = noted_readings(config, SCALE)
    if noted is not None:
        shorten(config, max(reading.layer for reading in noted[0]))
    return noted is not None
