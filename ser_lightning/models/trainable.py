"""What training changes in a module, taken out and put back by name; the frozen base never travels."""

from typing import Any

from torch import Tensor, nn

from ser_lightning.errors import UserError
from ser_lightning.utils.collectives import cut_like, gathered, own_part


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """Every tensor that training changes, by name, in shards where it lies in them; views, not copies."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def trained_part(module: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Of a module's state dict what training changes: adapters and heads, or every weight where all are trained.

    What lies in shards is `gathered`.
    """
    trained = trainable_state(module)
    return gathered({name: value for name, value in state.items() if name in trained})


def load_exactly(own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Copy saved tensors into a module's own.

    Args:
        own: tensors to write to, by name; of those in shards every rank writes its part.
        state: what they become, whole; must have the same names and shapes.

    Raises:
        UserError: if one is missing, left over or of another shape; a head or an adapter must never stay random.
    """
    if own.keys() != state.keys():
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        raise UserError(
            f"saved weights do not fit the model: got {len(missing)} missing {missing[:2]}, {len(extra)} unknown "
            f"{extra[:2]}; load them with the backbone settings that they were trained with"
        )
    for name, value in state.items():
        if own[name].shape != value.shape:
            raise UserError(
                f"saved weights do not fit the model: got {name} of shape {tuple(value.shape)}, need "
                f"{tuple(own[name].shape)}; load them with the backbone settings that they were trained with"
            )
        own_part(own[name]).copy_(own_part(cut_like(value, own[name])))
