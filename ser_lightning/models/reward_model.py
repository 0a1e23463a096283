"""The reward model: a transformers body, adapters on it, and a float32 head outside of both.

A decoder's reward is read where its `readings` say, an encoder keeps its own pooling.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch.utilities import rank_zero_warn
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from ser_lightning.data.layouts import PADDED, Layout
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.models.backbone import Backbone, load_tokenizer, not_found
from ser_lightning.models.loading import (
    check_vocabulary,
    forget_gguf,
    is_meta,
    keep_in_float32,
    loading_arguments,
    meta_model,
    prepare_body,
    quiet_load_report,
    read_config,
    usable_attention,
    use_liger_kernels,
)
from ser_lightning.models.masks import LayoutName, choose_layout
from ser_lightning.models.readings import (
    Reading,
    TurnTokens,
    drop_layers,
    noted_readings,
    parse_readings,
    read_states,
    standard_reading,
    turn_tokens,
)
from ser_lightning.models.trainable import load_exactly, trainable_state
from ser_lightning.records import Features, Inputs, Padded
from ser_lightning.utils.collectives import gathered


class RewardModel(nn.Module):
    """`AutoModelForSequenceClassification` with one label, read at the right token and with a float32 head.

    Args:
        model: the transformers model; its body may be wrapped by peft.
        layout: of the sequences that it reads best.
    """

    def __init__(self, model: nn.Module, layout: Layout = PADDED) -> None:
        super().__init__()
        self.model, self.layout = model, layout
        prefix = str(model.base_model_prefix)
        self.head_names = [name for name, _ in model.named_children() if name != prefix]
        self.is_decoder = self.head_names == ["score"]
        config: Any = model.config.get_text_config()
        self.readings = [standard_reading(config.num_hidden_layers)] if self.is_decoder else []
        self.is_body_frozen = not any(p.requires_grad for p in self.body.parameters())
        for name in self.head_names:
            keep_in_float32(model.get_submodule(name))

    @property
    def body(self) -> nn.Module:
        """The pretrained part, as peft wraps it."""
        return getattr(self.model, str(self.model.base_model_prefix))

    @property
    def hidden_size(self) -> int:
        """H, the size of a state."""
        return int(self.model.config.get_text_config().hidden_size)

    def read_at(self, readings: Sequence[Reading], tokens: TurnTokens) -> None:
        """Read elsewhere from now on; a head of another size is made anew.

        Args:
            readings: K of them.
            tokens: what they need of the chat template; batches are laid out with it.
        """
        self.readings = list(readings)
        self.lay_out_with(tokens)
        size = len(readings) * self.hidden_size
        if size != self.model.score.in_features:
            device: Any = self.model.score.weight.device
            config: Any = self.model.config.get_text_config()
            self.model.score = nn.Linear(size, 1, bias=False)
            with torch.random.fork_rng(devices=[]):  # as `load_reward_model` draws the rest
                torch.manual_seed(torch.initial_seed())
                nn.init.normal_(self.model.score.weight, std=getattr(config, "initializer_range", 0.02))
            self.model.score.to(device)
            keep_in_float32(self.model.score)

    def lay_out_with(self, tokens: TurnTokens) -> None:
        """From now on batches are laid out with what readings need of the chat template."""
        self.layout = replace(self.layout, header=tokens.header, question=tokens.question)

    def read_as(self, tokenizer: PreTrainedTokenizerBase, readings: Iterable[str], question: str) -> None:
        """Read what saved weights were trained to read, with at least the layers that are read.

        Args:
            tokenizer: with the chat template of the training.
            readings: as `str` gives them.
            question: what `judge` asks.
        """
        found = parse_readings(readings, self.num_layers)
        self.read_at(found, turn_tokens(tokenizer, found, question))

    def drop_unread_layers(self) -> None:
        """Take off the layers above the highest reading: they would be computed for nothing."""
        if self.highest_layer < self.num_layers:
            drop_layers(self.body, self.highest_layer)

    @property
    def highest_layer(self) -> int:
        """The last layer that a decoder's head reads."""
        return max(reading.layer for reading in self.readings)

    @property
    def num_layers(self) -> int:
        """How many layers the body has."""
        config: Any = self.model.config.get_text_config()
        return int(config.num_hidden_layers)

    def train(self, mode: bool = True) -> Self:
        """A frozen body stays in evaluation mode: dropout in what is not trained would be noise for nothing."""
        super().train(mode)
        if self.is_body_frozen:
            self.body.eval()
        return self

    def forward(self, inputs: Inputs | Features) -> Tensor:
        """(R,) float32 rewards, in logits, of R whole sequences in any layout, or of their states."""
        if not self.is_decoder:
            assert isinstance(inputs, Padded)
            logits = self.model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
            return logits.float().squeeze(-1)
        hidden = inputs.hidden if isinstance(inputs, Features) else self.states(inputs)
        return self.model.score(hidden.flatten(1)).squeeze(-1)

    def states(self, inputs: Inputs, readings: Sequence[Reading] | None = None) -> Tensor:
        """(R, K, H) states of a decoder at some readings, None = those of the head."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_body_frozen):
            return read_states(self.body, inputs, self.readings if readings is None else readings)

    def trainable_state(self) -> dict[str, Tensor]:
        """Every tensor that training changes, by name; views, not copies, except of what is `gathered` from shards."""
        return gathered(trainable_state(self))

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `trainable_state` gave; `UserError` if anything is missing, left over or of another shape."""
        load_exactly(trainable_state(self), state)


def load_reward_model(
    backbone: Backbone, device: torch.device | str = "cpu", layout: LayoutName = "auto", where: str = "layout"
) -> RewardModel:
    """The reward model as training starts from it; new weights (head, adapters) are drawn from the global seed alone.

    Args:
        backbone: the pretrained body and how it is trained.
        device: where 4-bit weights are made, and where the reward model will compute; `meta` reads no weights.
        layout: see `masks.choose_layout`.
        where: how errors call the layout's setting.

    Raises:
        UserError: if the model cannot be found or the settings cannot work together.
    """
    raise_problems(backbone.problems())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        model = _load_model(backbone, device)
        with torch.device("meta") if is_meta(device) else nullcontext():
            prepare_body(model, backbone)
    if backbone.use_liger_kernel:
        use_liger_kernels(model, device)
    return RewardModel(model, choose_layout(layout, model, device, where)).train()  # loaded with dropout off


def read_folder(model: PreTrainedModel, folder: Path, layout: Layout = PADDED) -> RewardModel:
    """The reward model of an exported folder, read where its `config.json` says, without the folder's own code.

    Args:
        model: what plain transformers loads of the folder.
        folder: has the head, whatever its size.
        layout: of the sequences that it reads best.

    Raises:
        UserError: if the entries are damaged, or the head fits them not.
    """
    reward_model = RewardModel(model, layout)
    noted = noted_readings(model.config)
    if noted is None:
        return reward_model
    if not reward_model.is_decoder:
        raise UserError("config.json: got reward_readings for an encoder, which pools by itself; take them out")
    reward_model.read_at(*noted)
    own: dict[str, Tensor] = {"score.weight": model.score.weight.data}
    saved: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            saved |= {name: tensors.get_tensor(name).view(1, -1) for name in own.keys() & tensors.keys()}
    load_exactly(own, saved)
    return reward_model


def merged_model(reward_model: RewardModel) -> nn.Module:
    """The plain transformers model with the adapters merged into its body. The reward model is used up by this."""
    model = reward_model.model
    if isinstance(reward_model.body, PeftModel):
        setattr(model, str(model.base_model_prefix), reward_model.body.merge_and_unload())
    for name in reward_model.head_names:
        vars(model.get_submodule(name)).pop("forward", None)
    forget_gguf(model)
    return model


def _load_model(backbone: Backbone, device: torch.device | str) -> nn.Module:
    path, backbone = backbone.resolved_path(), usable_attention(backbone, device)
    try:
        if is_meta(device):
            model = meta_model(AutoModelForSequenceClassification, backbone)
            check_vocabulary(model, load_tokenizer(backbone))
            return model
        # Only 4-bit weights are made where they are used: of others, a sharded run has no room for all on one device.
        place = device if backbone.quantize == "nf4" else None
        with quiet_load_report():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path,
                config=read_config(backbone),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **loading_arguments(backbone, place),
            )
    except UserError:
        raise
    except Exception as error:  # what a config of other types and sizes leads to
        raise UserError(not_found("model", path, error)) from error
    new = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    random = sorted(key for key in new if key.startswith(model.base_model_prefix + "."))
    if lost := [key for key in random if ".pooler." not in key]:
        raise UserError(
            f"backbone.path: {path} lacks {len(lost)} tensors of the body, such as {lost[0]}, or has them in another "
            "shape; give the folder of a whole pretrained model"
        )
    if random and backbone.train != "full":  # they are neither trained nor saved, and the next load draws others
        raise UserError(
            f"backbone.train: got {backbone.train}, but {path} lacks {len(random)} tensors of the body, such as "
            f"{random[0]}, which would stay random; use train: full, or a folder that was saved with them"
        )
    if random:  # a language model of BERT's kind is saved without what its classifier pools with
        rank_zero_warn(
            f"backbone.path: {path} lacks {len(random)} tensors of the body, such as {random[0]}; they start random"
        )
    check_vocabulary(model, load_tokenizer(backbone))
    return model
