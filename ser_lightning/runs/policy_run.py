"""A policy that another run has trained, as the start of this one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ser_lightning.errors import UserError
from ser_lightning.models.backbone import Backbone, backbone_from
from ser_lightning.models.policy import policy_state
from ser_lightning.runs.config import read_config, setting
from ser_lightning.runs.files import CONFIG, is_run, reading
from ser_lightning.runs.shapes import IDENTITY, check_shape
from ser_lightning.runs.weights import check_weights, read_weights
from ser_lightning.training.checkpoints import LAST, is_whole, newest_whole

POLICY_MODULES = ("SFTModule", "PPOModule")
WEIGHTS_PREFIX = "_policy."
"""Where the shells keep their `Policy`."""


@dataclass(frozen=True)
class PolicyStart:
    """What a policy starts from."""

    backbone: Backbone
    """Settings whose `path` is a pretrained model."""
    weights: dict[str, Tensor] | None
    """What a run has made of it, as `Policy.load_trainable_state` takes it; None for the pretrained model itself."""
    identity: Mapping[str, Any] | None = None
    """The base and the template that the weights belong to; None where the run has saved neither."""


def resolve_start(backbone: Backbone) -> PolicyStart:
    """Look behind a `path` that is the folder of a run that trained a policy; other paths stay as they are.

    Raises:
        UserError: if the run trained no policy, has no checkpoint, or trained in a way that this one cannot go on from.
    """
    run = Path(backbone.path)
    if not is_run(run):
        return PolicyStart(backbone, None)
    trained = read_policy_backbone(run)
    _check_fits(backbone, trained, run)
    template = trained.template if backbone.template == "auto" else backbone.template
    base = resolve_start(trained).backbone
    settings = replace(backbone, path=base.path, gguf_file=base.gguf_file, template=template)
    saved = read_weights(run / LAST)
    state, identity = saved.get("state_dict"), saved.get("identity")
    weights = {
        name.removeprefix(WEIGHTS_PREFIX): value
        for name, value in (state.items() if isinstance(state, dict) else ())
        if str(name).startswith(WEIGHTS_PREFIX)
    }
    check_weights(run / LAST, weights)
    if identity is not None:
        with reading(run / LAST, has_record=False):
            check_shape(identity, IDENTITY, "identity")
        if template != trained.template:
            identity = {**identity, "template": ""}
    return PolicyStart(settings, policy_state(weights), identity)


def read_policy_backbone(run: Path) -> Backbone:
    """The settings that a run trained its policy with; `UserError` if it trained none."""
    kind = model_kind(run)
    if kind not in POLICY_MODULES:
        raise UserError(
            f"backbone.path: got {run}, a run of {kind or 'no model'}; give a run of sft.yaml or ppo.yaml, or a model"
        )
    return backbone_from(setting(run, "model", "init_args", "backbone"), str(run / CONFIG))


def model_kind(run: Path) -> str:
    """The class of the LightningModule that a run trained, by its bare name; empty if the folder is no run."""
    model = read_config(run).get("model") if is_run(run) else None
    return str(model.get("class_path", "")).rpartition(".")[2] if isinstance(model, dict) else ""


def _check_fits(backbone: Backbone, trained: Backbone, run: Path) -> None:
    if not (run / LAST).exists():
        raise UserError(f"backbone.path: got {run}, which has no {LAST}; let its fit finish an epoch first")
    if not is_whole(run / LAST):
        good = newest_whole((run / LAST).parent)
        fix = f"put {good} in its place" if good else "train it again"
        raise UserError(f"backbone.path: got {run}, whose {LAST} is damaged (cut off or not a checkpoint); {fix}")
    if trained.train != backbone.train:
        raise UserError(
            f"backbone.train: got {backbone.train} for {run}, which was trained with {trained.train}; use that, or "
            f"`export {run}` and give backbone.path the folder that it writes"
        )
    changed = [
        name
        for name in ("r", "alpha", "target_modules")
        if backbone.train == "lora" and getattr(trained.lora, name) != getattr(backbone.lora, name)
    ]
    if changed:
        name = changed[0]
        raise UserError(
            f"backbone.lora.{name}: got {getattr(backbone.lora, name)} for {run}, which was trained with "
            f"{getattr(trained.lora, name)}; use that, or `export {run}` and start from the folder that it writes"
        )
