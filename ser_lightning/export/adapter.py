"""A trained adapter as a peft folder: of a plain classifier where peft has a place for its head, else of the body."""

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from ser_lightning.models.adapter_folder import HEAD, write_scale
from ser_lightning.models.fingerprint import template_fingerprint
from ser_lightning.models.loading import loading_arguments
from ser_lightning.models.readings import TurnTokens, reading_entries
from ser_lightning.models.reward_model import RewardModel
from ser_lightning.models.trainable import load_exactly
from ser_lightning.runs.reward_run import RewardRun


def write_adapter(
    source: RewardRun, trained: RewardModel, tokenizer: PreTrainedTokenizerBase, folder: Path, is_own: bool
) -> None:
    """Write the adapter's factors, the head, and the scale with all that peft has no place for.

    Args:
        is_own: the head reads elsewhere than a classifier on the whole base. Then the adapter is one of the body up to
            the highest reading, and the head lies beside it.
    """
    body, layout = trained.body, trained.layout
    assert isinstance(body, PeftModel)
    path = source.backbone.resolved_path()
    # peft notes the base as it was named, but the folder is read from anywhere.
    base = str(Path(path).resolve()) if Path(path).is_dir() else path
    entries: dict[str, list[str] | list[int]] = {}
    if is_own:
        entries = reading_entries(trained.readings, TurnTokens(layout.header, layout.question))
        _save(body, base, folder)
        score: Any = trained.model.score
        save_file({"score.weight": score.weight.detach().flatten()}, folder / HEAD)
    else:
        _save(_classifier(source, body, trained.head_names), base, folder)
    template = template_fingerprint(tokenizer)
    write_scale(folder, source.zero, source.temperature, template, source.backbone.quantize, entries)


def _save(model: PeftModel, base: str, folder: Path) -> None:
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)


def _classifier(source: RewardRun, body: PeftModel, head_names: list[str]) -> PeftModel:
    """What peft loads with `AutoPeftModelForSequenceClassification`: the head is among its `modules_to_save`."""
    arguments = loading_arguments(source.backbone, None)
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
