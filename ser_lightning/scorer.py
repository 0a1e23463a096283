"""The scorer: a transformers body, adapters on it, and a float32 head outside of both.

A decoder's reward is read at the last position whose attention mask is 1; an encoder keeps its own pooling.
"""

import torch
from lightning.pytorch.utilities import rank_zero_warn
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from ser_lightning.backbone import Backbone, load_tokenizer, not_found
from ser_lightning.bodies import (
    check_vocabulary,
    keep_in_float32,
    loading_arguments,
    position_arguments,
    prepare_body,
    quiet_load_report,
)
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.trainable import load_exactly, trainable_state


class Scorer(nn.Module):
    """`AutoModelForSequenceClassification` with one label, read at the right token and with a float32 head.

    Args:
        model: the transformers model; its body may be wrapped by peft.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        prefix = str(model.base_model_prefix)
        self.head_names = [name for name, _ in model.named_children() if name != prefix]
        self.is_decoder = self.head_names == ["score"]
        for name in self.head_names:
            keep_in_float32(model.get_submodule(name))

    @property
    def body(self) -> nn.Module:
        """The pretrained part, as peft wraps it."""
        return getattr(self.model, str(self.model.base_model_prefix))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Rewards of whole sequences.

        Args:
            input_ids: (R, T) token ids.
            attention_mask: (R, T), 1 = a real token; padded on either side.

        Returns:
            (R,) float32 logits.
        """
        if not self.is_decoder:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits.float().squeeze(-1)
        extra = position_arguments(self.body, attention_mask)
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask, **extra).last_hidden_state
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        last_index = (positions * attention_mask).argmax(-1)
        last = hidden[torch.arange(len(hidden), device=hidden.device), last_index]
        return self.model.score(last).squeeze(-1)

    def trainable_state(self) -> dict[str, Tensor]:
        """Every tensor that training changes, by name; views, not copies."""
        return trainable_state(self)

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `trainable_state` gave; `UserError` if anything is missing, left over or of another shape."""
        load_exactly(self.trainable_state(), state)


def load_scorer(backbone: Backbone, device: torch.device | str = "cpu") -> Scorer:
    """The scorer as training starts from it. The new weights (head, adapters) are drawn from the global seed alone.

    Raises:
        UserError: if the model cannot be found or the settings cannot work together.
    """
    raise_problems(backbone.problems())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        model = _load_model(backbone, device)
        prepare_body(model, backbone)
    return Scorer(model).train()  # transformers loads for inference, with dropout off


def merged_model(scorer: Scorer) -> nn.Module:
    """The plain transformers model with the adapters merged into its body. The scorer is used up by this."""
    model = scorer.model
    if isinstance(scorer.body, PeftModel):
        setattr(model, str(model.base_model_prefix), scorer.body.merge_and_unload())
    for name in scorer.head_names:
        vars(model.get_submodule(name)).pop("forward", None)
    return model


def _load_model(backbone: Backbone, device: torch.device | str) -> nn.Module:
    path = backbone.resolved_path()
    try:
        with quiet_load_report():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path,
                num_labels=1,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **loading_arguments(backbone, device),
            )
    except (OSError, ValueError) as error:
        raise UserError(not_found("model", path, error)) from error
    new = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if random := [key for key in new if key.startswith(model.base_model_prefix + ".")]:
        rank_zero_warn(
            f"backbone.path: {path} lacks {len(random)} tensors of the body, such as {random[0]}; they start random"
        )
    check_vocabulary(model, load_tokenizer(backbone))
    return model
