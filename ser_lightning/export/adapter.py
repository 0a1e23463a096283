"""What a run has trained, without its base: an adapter as a peft folder, with the head; of a frozen body the head."""

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from ser_lightning.models.adapter_folder import BASE, HEAD, write_scale
from ser_lightning.models.fingerprint import identity_of
from ser_lightning.models.loading import loading_arguments, usable_attention
from ser_lightning.models.readings import TurnTokens, reading_entries
from ser_lightning.models.reward_model import RewardModel
from ser_lightning.models.trainable import load_exactly
from ser_lightning.runs.reward_run import RewardRun


def write_adapter(
    source: RewardRun,
    trained: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    dtype: str,
    is_own: bool,
) -> None:
    """Write the adapter's factors, the head, and the scale with all that peft has no place for.

    Args:
        dtype: number format that the base is to be loaded in.
        is_own: peft has no classifier with this head. Then the adapter, if there is one, is that of the body up to the
            highest reading, and the head lies beside it.
    """
    body, layout = trained.body, trained.layout
    path = source.backbone.resolved_path()
    # peft notes the base as it was named, but the folder is read from anywhere.
    base = str(Path(path).resolve()) if Path(path).is_dir() else path
    folder.mkdir(exist_ok=True)
    more: dict[str, Any] = {}
    if is_own:
        more = {**reading_entries(trained.readings, TurnTokens(layout.header, layout.question))}
        score: Any = trained.model.score
        save_file({"score.weight": score.weight.detach().flatten()}, folder / HEAD)
    if isinstance(body, PeftModel):
        _save(body if is_own else _classifier(source, body, trained.head_names), base, folder)
    else:
        more[BASE] = base
    identity = identity_of(trained.model, tokenizer)
    write_scale(folder, source.zero, source.temperature, source.backbone.quantize, dtype, identity, more)


def _save(model: PeftModel, base: str, folder: Path) -> None:
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)


def _classifier(source: RewardRun, body: PeftModel, head_names: list[str]) -> PeftModel:
    """What peft loads with `AutoPeftModelForSequenceClassification`: the head is among its `modules_to_save`."""
    arguments = loading_arguments(usable_attention(source.backbone, "cpu"), None)
    arguments.pop("quantization_config", None)
    base = AutoModelForSequenceClassification.from_pretrained(
        source.backbone.resolved_path(), num_labels=1, **arguments
    )
    lora = source.backbone.lora
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=body.peft_config["default"].target_modules,
        modules_to_save=head_names,
    )
    model = get_peft_model(base, config)
    own = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    prefix = f"{base.base_model_prefix}."
    saved = {}
    for name, tensor in source.weights.items():
        name = name.removeprefix("model.").replace(f"{prefix}base_model.model.", prefix, 1)
        if name.split(".")[0] in head_names:
            head, _, rest = name.partition(".")
            name = f"{head}.modules_to_save.default.{rest}"
        saved[f"base_model.model.{name}"] = tensor
    load_exactly(own, saved)
    return model
