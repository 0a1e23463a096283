"""Which pretrained model and how it is trained, and its tokenizer, ready to use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from jsonargparse import ArgumentError, ArgumentParser
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ser_lightning.errors import UserError, describe, raise_problems
from ser_lightning.models.tokens import check_is_whole, choose_pad, move_pad
from ser_lightning.utils.hub import without_hub

Train = Literal["lora", "full", "head"]
Quantize = Literal["none", "nf4"]
BUNDLED_MODEL = "world_lm"
"""Name of the small language model of the synthetic dataset, which ships with the package."""

PAPER_TEMPLATE = (
    "{{% for m in messages %}}"
    "{{% if loop.first %}}{prefix}{{% endif %}}"
    "{{% if m['role'] == 'user' %}}{{{{ 'Question: ' + m['content'] + '\\n\\n' }}}}"
    "{{% elif m['role'] == 'assistant' %}}{{{{ 'Answer: ' + m['content'] }}}}"
    "{{% if not loop.last %}}{{{{ '\\n\\n' }}}}{{% else %}}{suffix}{{% endif %}}"
    "{{% else %}}{{{{ m['content'] + '\\n\\n' }}}}{{% endif %}}"
    "{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ 'Answer:' }}}}{{% endif %}}"
)


@dataclass
class LoraSettings:
    """Low-rank adapters on the body; the defaults are the paper's.

    Args:
        r: rank of the adapters.
        alpha: numerator of their scale, alpha / r.
        dropout: dropout on their input.
        target_modules: names of the layers that get one, or `all-linear`.
    """

    r: int = 8
    alpha: int = 32
    dropout: float = 0.1
    target_modules: str | list[str] = "all-linear"


@dataclass
class Backbone:
    """A pretrained body and how it is trained.

    Args:
        path: folder or Hub name of a transformers model, or `world_lm`, the one that ships with the package.
        train: `lora` trains adapters, `full` every weight, `head` the head alone.
        lora: the adapters, where `train` is `lora`.
        quantize: `nf4` holds the frozen body in 4 bits (bitsandbytes, double quantisation).
        dtype: number format of the body's weights; the head and the adapters stay in float32.
        template: `auto` takes the tokenizer's chat template and the paper's where it has none; `paper` is
            `Question: {Q}\\n\\nAnswer: {A}`; anything else is the path of a file with a Jinja chat template.
        attn_implementation: attention kernel as transformers names it; None lets it choose. FlashAttention and
            FlexAttention are for CUDA; elsewhere the model is loaded without them.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        use_liger_kernel: on a CUDA GPU, compute norms and MLPs with Liger's fused kernels (extra `liger`).
        gguf_file: name of a GGUF file in `path`, for models that ship as one.
        trust_remote_code: run the Python files that come with a model; its author's code then does as it likes. Only
            the command line can set it.
    """

    path: str
    train: Train = "lora"
    lora: LoraSettings = field(default_factory=LoraSettings)
    quantize: Quantize = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"
    template: str = "auto"
    attn_implementation: str | None = None
    gradient_checkpointing: bool = False
    use_liger_kernel: bool = False
    gguf_file: str | None = None
    trust_remote_code: bool = False

    def problems(self) -> list[str]:
        """Words that are no choice and combinations that cannot work, a line each."""
        choices = {"train": Train, "quantize": Quantize}  # an export may be of other dtypes than a training
        found = [
            f"backbone.{name}: got {word!r}; use {', '.join(get_args(kind))}"
            for name, kind in choices.items()
            if (word := getattr(self, name)) not in get_args(kind)
        ]
        if self.quantize != "none" and self.train == "full":
            found.append("backbone.train: got full with quantize nf4; 4-bit weights cannot be trained, use lora")
        if self.quantize != "none" and self.gguf_file:
            found.append("backbone.gguf_file: got a GGUF file with quantize nf4; use a safetensors folder or no nf4")
        if self.train == "lora" and (self.lora.r < 1 or not 0 <= self.lora.dropout < 1):
            found.append(
                f"backbone.lora: got r {self.lora.r}, dropout {self.lora.dropout}; need r >= 1, 0 <= dropout < 1"
            )
        return found

    def training_problems(self) -> list[str]:
        """Combinations that cannot be trained, a line each; those that can be loaded all the same are among them."""
        found = self.problems()
        if self.train == "full" and self.dtype == "bfloat16":
            found.append(
                "backbone.dtype: got bfloat16 with train full, in which small steps of the optimizer are rounded away; "
                "use float32 with trainer.precision bf16-mixed, or train lora"
            )
        return found

    def resolved_path(self) -> str:
        """`path`, or the folder of the bundled model."""
        if self.path == BUNDLED_MODEL and not Path(self.path).is_dir():
            return str(resources.files("ser_lightning.synthetic") / BUNDLED_MODEL)
        return self.path


def backbone_from(settings: Mapping[str, Any], where: str, trust_remote_code: bool = False) -> Backbone:
    """The settings that a file holds, except that no file can grant trust.

    Raises:
        UserError: they are none, or of other types than they must be.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=Backbone, required=True)
    given = {**settings, "trust_remote_code": trust_remote_code}
    try:
        found: Backbone = parser.instantiate_classes(parser.parse_object({"backbone": given})).backbone
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(f"{where}: has no settings of a backbone ({describe(error)}); is it damaged?") from error
    raise_problems(found.problems())
    return found


def load_tokenizer(backbone: Backbone) -> PreTrainedTokenizerBase:
    """The tokenizer with a pad token and a chat template, so that everything is encoded in one way.

    Raises:
        UserError: if it cannot be found, has no text or no EOS, the template file does not
            exist, or the template refuses a question and its answer.
    """
    path = backbone.resolved_path()
    without_hub(path)
    extra = {"gguf_file": backbone.gguf_file} if backbone.gguf_file else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=backbone.trust_remote_code, **extra)
    except Exception as error:  # tokenizers raises nothing narrower for a folder without a vocabulary
        raise UserError(not_found("tokenizer", path, error)) from error
    check_is_whole(tokenizer)
    choose_pad(tokenizer)
    if backbone.template == "paper" or (backbone.template == "auto" and not tokenizer.chat_template):
        tokenizer.chat_template = _paper_template(tokenizer)
    elif backbone.template != "auto":
        file = Path(backbone.template)
        if not file.is_file():
            raise UserError(f"backbone.template: got {backbone.template}; need auto, paper or a Jinja file that exists")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    move_pad(tokenizer)
    return tokenizer


def _paper_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """`Question: {Q}\\n\\nAnswer: {A}` between the special tokens that the tokenizer itself puts around a text."""
    bare = tokenizer("x", add_special_tokens=False).input_ids
    full = tokenizer("x", add_special_tokens=True).input_ids
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    prefix = "".join(tokenizer.convert_ids_to_tokens(full[:start]))
    suffix = "".join(tokenizer.convert_ids_to_tokens(full[start + len(bare) :]))
    if not suffix and tokenizer.eos_token != tokenizer.pad_token:
        suffix = tokenizer.eos_token or ""
    return PAPER_TEMPLATE.format(prefix=prefix, suffix=suffix)


def not_found(what: str, path: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"backbone.path: {path} comes with Python files, which run only if the command line itself says so; look "
            "through them, then add --trust_remote_code (fit: --model.backbone.trust_remote_code true)"
        )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    folder = Path(path).expanduser()
    if folder.exists():
        return f"backbone.path: no {what} could be loaded from {path} ({reason}); give a transformers folder"
    if path[:1] in "./~" or path.count("/") > 1:
        return f"backbone.path: got {path}; there is no such folder; give a transformers folder or a Hub name"
    if without_hub(path):
        return (
            f"backbone.path: got {path}; there is no such folder, no {what} of that name was downloaded before, and "
            "the Hub cannot be reached (or HF_HUB_OFFLINE is set); give a folder that holds the model "
            "(fit: --model.backbone.path FOLDER)"
        )
    return (
        f"backbone.path: got {path}; there is no such folder, and the Hub gave no {what} of that name ({reason}); give "
        "a transformers folder or a Hub name"
    )
