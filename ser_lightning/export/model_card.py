"""The README of an exported model: what it is, how to use it, what it was made from, what it cannot do."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ser_lightning.export.reading_folder import CODE
from ser_lightning.models.adapter_folder import ADAPTER, SCALE
from ser_lightning.models.readings import Reading
from ser_lightning.runs.config import read_config
from ser_lightning.runs.files import ROUNDS, STEPS
from ser_lightning.runs.policy_run import model_kind
from ser_lightning.utils.versions import package_versions

_COLUMNS = {
    ROUNDS: {
        "round": "round",
        "kept": "labels kept",
        "seed_oof_accuracy": "seed, out of fold",
        "test_accuracy": "test",
        "calibration_error": "calibration error",
        "length_correlation": "correlation with length",
        "delivered": "delivered",
    },
    STEPS: {
        "step": "step",
        "reward": "reward",
        "judge_score": "second judge",
        "kl": "KL, nats a response",
        "length": "tokens",
        "win_rate": "win rate",
    },
}
"""Columns of a run's table that the card shows, and what it calls them."""
_REWARD = """
It gives a response to a prompt a reward. In a pair, P(a is better) = sigmoid((reward a - reward b) /
{{ temperature }}); a reward of {{ zero }} is that of a response as often better as worse.
{{ reads }}
```python
{{ code }}
```
Conversations had at most {{ max_length }} tokens in training.
"""
_PLAIN_CODE = """
from transformers import AutoTokenizer, {{ auto_class }}

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = {{ auto_class }}.from_pretrained("FOLDER"{{ arguments }}).eval()
model.config.pad_token_id = tokenizer.pad_token_id
messages = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]
inputs = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
reward = model(**inputs).logits[0, 0].float().item()
"""
_OWN_CODE = """
import sys

sys.path.insert(0, "FOLDER")
from reward_model import load

model = load("FOLDER")
messages = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]
reward = model([messages])[0].item()
"""
_ASKS = """
The reward is read after a question. The chat template puts it after a conversation that ends with the assistant's
turn, so give it whole conversations through `apply_chat_template` and do not put the question yourself:

> {{ question }}
"""
_READS = """
Its head reads states of the language model at {{ readings }} (place and layer): {{ places }}.
`AutoModelForSequenceClassification` reads one last token alone and does not load this folder; `reward_model.py` in it
does, with {{ needs }} alone. Nor can vLLM serve it as a classifier: call `load` in a process of your own, train
with `--model.reading '[judge]'` or `'[last]'`, whose exports are plain classifiers, or train a plain student of the run
(`--config student.yaml`). If transformers reports `score.weight` as unexpected: that is the head, which the file reads
itself.
"""
_ANSWER = """
# What a language model answers, as a reward

The reward of a response is the log-odds of Yes against No, as `{{ model }}` answers a question about it. No label has
trained or calibrated it.
{{ asks }}
```python
{{ code }}
```
Conversations may have {{ max_length }} tokens.

## Checked
{{ checked }}
"""
_QUANTIZATION = """
quantization = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16",
    llm_int8_skip_modules=["score"],
)"""
_POLICY = """
A language model; use it as any other one of its architecture, with the chat template of its tokenizer.
"""
_TEMPLATE = """---
{{ card_data }}
---
# {{ title }}
{{ use }}
## Made from
- base model: `{{ base_model }}`, trained with `{{ train }}`{{ quantized }}
- data: {{ data }}; {{ labels }}random seeds: {{ seed }} (training), {{ split_seed }} (splits)
- weights: {{ weights }}
- versions: {{ versions }}

{{ table }}

## Checked
{{ checked }}

## Limits
{{ limits }}
"""
_OWN_LABELS = """- {} of its labels were its own: where its first guesses were wrong, it may have learned them.
"""
_TAUGHT = """- It learned from pseudo-labels of another run, `{}`, too: where these are wrong, it may be wrong.
"""
_REWARD_LIMITS = """- Its rewards compare responses to one prompt; across prompts they mean little.
- It inherits the biases of its data: language, length, subject, and the preferences of its annotators."""
_POLICY_LIMITS = {
    "PPOModule": "- It was trained to please a reward model; where that is wrong, it learned what is wrong.",
    "SFTModule": "- It imitates the responses that were chosen in its data, and knows nothing of their rewards.",
}
"""By what trained the policy."""
_TABLE_NOTES = {
    ROUNDS: "Baselines, intervals and the labels taken are in the run's own files. The test pairs chose nothing.",
    STEPS: "On held-out prompts, those of the test pairs; intervals are in the run's own files.",
}
"""What is said of each table."""


def model_card(
    run: Path,
    folder: Path,
    what: str,
    weights: str,
    checked: str,
    scale: tuple[float, float] | None = None,
    own_labels: int = 0,
    readings: Sequence[Reading] = (),
    question: str = "",
    base: str | None = None,
) -> None:
    """Write `README.md` into an export.

    Args:
        what: `merged`, `adapter` or `policy`.
        weights: what the weights are, such as the round and their number format.
        checked: what the self-test found.
        scale: zero and temperature of a reward model.
        own_labels: how many labels of its own a reward model was trained on.
        readings: where the head of a reward model reads; none of an encoder.
        base: the pretrained model, None = `backbone.path`, which may be a run that a policy started from.
    """
    config = read_config(run)
    backbone, data = config["model"]["init_args"]["backbone"], config["data"]["init_args"]
    base = base or backbone["path"]
    has_peft, is_own = ((folder / name).is_file() for name in (ADAPTER, CODE))
    card_data = ModelCardData(
        library_name="peft" if has_peft else "transformers",
        pipeline_tag="text-generation" if what == "policy" else "text-classification",
        tags=["ser-lightning", "policy"] if what == "policy" else ["ser-lightning", "reward-model"],
        base_model=base if "/" in base and not Path(base).exists() else None,
    )
    if what == "policy":
        title, limits = "A policy", _POLICY_LIMITS[model_kind(run)]
    else:
        title, limits = _title_and_limits(own_labels, data.get("teacher"))
    values: dict[str, Any] = {"title": title, "max_length": data.get("max_length")}
    if what == "adapter":
        values["dtype"] = json.loads((folder / SCALE).read_text())["base_dtype"]
    if scale:
        values |= {"zero": f"{scale[0]:.4g}", "temperature": f"{scale[1]:.4g}"}
    values["reads"] = _how_it_reads(readings, question, is_own, has_peft)
    values |= {
        "use": _use(what, backbone.get("quantize") == "nf4", not is_own, values),
        "base_model": _shown(base),
        "train": backbone["train"],
        "quantized": ", its body in 4 bits" if backbone.get("quantize") == "nf4" else "",
        "data": ", ".join(f"`{_shown(path)}`" for path in _as_list(data["path"])),
        "labels": f"share with labels {data['seed_fraction']}; " if "seed_fraction" in data else "",
        "seed": config["seed_everything"],
        "split_seed": data.get("split_seed"),
        "weights": weights,
        "versions": ", ".join(f"{name} {version}" for name, version in package_versions().items()),
        "table": run_table(run),
        "checked": checked,
        "limits": limits,
    }
    ModelCard.from_template(card_data, template_str=_TEMPLATE, **values).save(folder / "README.md")


def answer_text(model: str, question: str, max_length: int, checked: str) -> str:
    """The card of a language model's own answer, see `export/answer.py`."""
    code = _render(_PLAIN_CODE, {"auto_class": "AutoModelForSequenceClassification", "arguments": ""})
    asks = _render(_ASKS, {"question": question})
    values = {"model": _shown(model), "asks": f"\n{asks}\n", "code": code, "max_length": max_length}
    return _render(_ANSWER, {**values, "checked": checked})


def _title_and_limits(own_labels: int, teacher: str | None) -> tuple[str, str]:
    """What a reward model is, and what to beware of."""
    title, limits = "A reward model", _REWARD_LIMITS
    if own_labels:
        title, limits = f"{title} that labelled data of its own", _OWN_LABELS.format(own_labels) + limits
    if teacher:
        title, limits = "A reward model that learned from another one", _TAUGHT.format(_shown(teacher)) + limits
    return title, limits


def _use(what: str, is_4bit: bool, is_read_plainly: bool, values: dict[str, Any]) -> str:
    """How to use the folder, with code that can be copied."""
    is_adapter = what == "adapter"
    bits = ", quantization_config=quantization" if is_4bit else ""
    values = values | {
        "auto_class": f"Auto{'Peft' if is_adapter else ''}ModelForSequenceClassification",
        "arguments": f', num_labels=1, dtype="{values["dtype"]}"{bits}' if is_adapter else "",
    }
    values["code"] = _render(_PLAIN_CODE if is_read_plainly else _OWN_CODE, values)
    use = _render(_POLICY if what == "policy" else _REWARD, values)
    if is_adapter:
        use = use.replace("AutoTokenizer, AutoPeft", "AutoTokenizer\nfrom peft import AutoPeft")
    if is_adapter and is_4bit:
        use = use.replace("import AutoTokenizer\n", "import AutoTokenizer, BitsAndBytesConfig\n")
        use = use.replace("\ntokenizer =", _QUANTIZATION + "\ntokenizer =", 1)
    return use


def _how_it_reads(readings: Sequence[Reading], question: str, is_own: bool, has_peft: bool) -> str:
    """What a reader of the card has to know of where the reward is read; an empty line of a standard reward model."""
    kinds = {reading.kind for reading in readings}
    if not is_own:
        return "\n" + _render(_ASKS, {"question": question}) + "\n" if "judge" in kinds else ""
    places = {
        "last": "`last` is the response's last token",
        "mean": "`mean` is the mean over the response's tokens",
        "judge": f'`judge` is where the answer to "{question}" would begin',
    }
    values = {
        "readings": ", ".join(map(str, readings)),
        "places": ", ".join(text for kind, text in places.items() if kind in kinds),
        "needs": "torch, transformers and peft" if has_peft else "torch and transformers",
    }
    return "\n" + _render(_READS, values) + "\n"


def _shown(path: str) -> str:
    """A name on the Hub as it is, of a local path the last part: folders of one machine tell a reader nothing."""
    return Path(path).name if Path(path).exists() else path


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _render(template: str, values: dict[str, Any]) -> str:
    from jinja2 import Template  # comes with the model card

    return Template(template).render(values).strip("\n")


def run_table(run: Path) -> str:
    """The run's table of rounds or steps as Markdown, its own columns only, and a note; empty without one."""
    for name, columns in _COLUMNS.items():
        if not (run / name).is_file():
            continue
        with (run / name).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        shown = [column for column in columns if rows and rows[0].get(column) not in (None, "")]
        lines = ["| " + " | ".join(columns[column] for column in shown) + " |", "|" + "---|" * len(shown)]
        lines += ["| " + " | ".join(_short(row[column]) for column in shown) + " |" for row in rows]
        return "\n".join([*lines, "", _TABLE_NOTES[name]])
    return ""


def _short(cell: str) -> str:
    try:
        return f"{float(cell):.4g}"
    except ValueError:
        return cell
