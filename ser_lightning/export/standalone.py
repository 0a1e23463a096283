"""A reward model that reads its language model at several places, with torch and transformers alone.

`config.json` says where: `reward_readings` has the places and the layers, `reward_question` the ids that `judge` puts
after a response. A response begins after the ids that are the same for any response to its prompt.
Where the folder has no base model, `reward_scale.json` says so; peft puts its adapter, if there is one, on the base.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BitsAndBytesConfig

PROBES = ("Alpha beta.", "7 of them", "zulu")
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


def load(folder: str | Path, **arguments: Any) -> "RewardModel":
    """The reward model of a folder; `arguments` go to `AutoModel.from_pretrained`."""
    folder = Path(folder)
    for file in folder.glob("*.safetensors"):
        with safe_open(str(file), "pt") as tensors:
            if "score.weight" in tensors.keys():  # noqa: SIM118  this is no dict
                head = tensors.get_tensor("score.weight")
    trust = arguments.get("trust_remote_code")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    is_whole = not (folder / "reward_scale.json").is_file()
    body = AutoModel.from_pretrained(folder, **arguments) if is_whole else _on_base(folder, **arguments)
    return RewardModel(body, head, tokenizer).eval()


def _on_base(folder: Path, **arguments: Any) -> nn.Module:
    """The base up to the highest layer that is read, with the adapter on it."""
    notes = json.loads((folder / "reward_scale.json").read_text())
    adapter = folder / "adapter_config.json"
    base = (json.loads(adapter.read_text()) if adapter.is_file() else notes)["base_model_name_or_path"]
    config = AutoConfig.from_pretrained(base, trust_remote_code=arguments.get("trust_remote_code"))
    text = config.get_text_config()
    text.num_hidden_layers = max(int(reading.split("@")[1]) for reading in notes["reward_readings"])
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    for name in ("reward_readings", "reward_question"):
        setattr(config, name, notes[name])
    arguments = {"dtype": getattr(torch, notes["base_dtype"]), **arguments}
    if notes["base_quantize"] == "nf4":
        bits = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16"}
        arguments = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **bits), **arguments}
    body = AutoModel.from_pretrained(base, config=config, **arguments)
    if not adapter.is_file():
        return body
    from peft import PeftModel

    return PeftModel.from_pretrained(body, folder).get_base_model()


class RewardModel(nn.Module):
    """Gives conversations, lists of turns that end with the assistant's response, their rewards."""

    head: Tensor

    def __init__(self, body: Any, head: Tensor, tokenizer: Any) -> None:
        super().__init__()
        self.body, self.tokenizer = body, tokenizer
        self.register_buffer("head", head.float().flatten())
        self.norm = next(getattr(body, name) for name in FINAL_NORMS if hasattr(body, name))
        self.readings = [reading.split("@") for reading in body.config.reward_readings]
        self.question = body.config.reward_question

    @torch.no_grad()
    def forward(self, conversations: Sequence[list[dict[str, str]]], batch_size: int = 8) -> Tensor:
        """(N,) float32 rewards of N conversations."""
        rows = [self._ids(turns) for turns in conversations]
        starts = [min(self._start(turns), len(row) - 1) for turns, row in zip(conversations, rows, strict=True)]
        places = range(0, len(rows), batch_size)
        return torch.cat([self._score(rows[i : i + batch_size], starts[i : i + batch_size]) for i in places])

    def _ids(self, turns: list[dict[str, str]]) -> list[int]:
        return self.tokenizer.apply_chat_template(turns, return_dict=False)

    def _start(self, turns: list[dict[str, str]]) -> int:
        """Where the response begins, whatever it says."""
        rows = [self._ids([*turns[:-1], {**turns[-1], "content": probe}]) for probe in PROBES]
        return next(i for i, ids in enumerate(zip(*rows)) if len(set(ids)) > 1)  # noqa: B905  of different lengths

    def _score(self, rows: list[list[int]], starts: list[int]) -> Tensor:
        asked = [row + self.question for row in rows]
        width = max(map(len, asked))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in asked])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in asked])
        device = self.head.device
        output = self.body(input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True)
        num_layers = len(output.hidden_states) - 1
        states = []
        for kind, layer in self.readings:
            is_last = int(layer) == num_layers
            hidden = output.last_hidden_state if is_last else self.norm(output.hidden_states[int(layer)])
            both = enumerate(zip(rows, starts, strict=True))
            states.append(torch.stack([self._read(hidden[i], kind, row, start) for i, (row, start) in both]))
        return torch.cat(states, dim=1) @ self.head

    def _read(self, hidden: Tensor, kind: str, row: list[int], start: int) -> Tensor:
        """(H,) state of one conversation."""
        if kind == "judge":
            return hidden[len(row) + len(self.question) - 1].float()
        if kind == "last":
            return hidden[len(row) - 1].float()
        return hidden[start : len(row)].float().mean(0)
