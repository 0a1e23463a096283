"""Settings that parse and are refused all the same.

They let a model or a checkpoint run code and were not typed, or this project's modules cannot follow them.
"""

from collections.abc import Iterator, Sequence

from jsonargparse import Namespace

MODULES = ("RewardModule", "SFTModule", "PPOModule", "GenerateModule")
"""This project's own: they optimise by hand, and hold their numbers in the format that `backbone.dtype` says."""
PRECISIONS = ("32-true", "bf16-mixed", "None", "32", "bf16")
"""In 16-mixed gradients are scaled until the optimiser steps, which is after they are clipped and checked here."""


def model_name(config: Namespace) -> str:
    """The class of the model, without its modules; empty where the config has none."""
    return config.model.class_path.rpartition(".")[2] if config.get("model") else ""


def trust_problems(config: Namespace, flags: Sequence[Sequence[str]]) -> Iterator[str]:
    """A line for each setting that lets a model or a checkpoint run code, but stands in a file alone."""
    for key, granted, risk in (
        ("trust_remote_code", "true", "runs the Python files of a model"),
        ("weights_only", "false", "unpickles a checkpoint, which can run code"),
    ):
        found = [name for name, value in config.items() if name.split(".")[-1] == key and value is (granted == "true")]
        typed = [value for flag in flags for name, value in [_named_value(flag)] if name == key]
        if found and typed[-1:] != [granted]:
            name = found[0].replace(".init_args", "")
            yield f"{name}: got {granted} in a config, which {risk}; say it on the command line: --{name} {granted}"


def _named_value(flag: Sequence[str]) -> tuple[str, str]:
    """The last part of a flag's name and its value."""
    name, equals, value = flag[0].partition("=")
    return name.removeprefix("--").split(".")[-1], (value if equals else " ".join(flag[1:])).lower()


def lightning_problems(command: str, config: Namespace) -> Iterator[str]:
    """A line for each setting that the modules cannot follow or that would do nothing, and for an untrained model."""
    if config.seed_everything is not None and not 0 <= int(config.seed_everything) < 2**32:
        yield f"seed_everything: got {config.seed_everything}; give a number from 0 to {2**32 - 1}"
    if (name := model_name(config)) not in MODULES:
        return
    trainer, data = config.trainer, config.data.get("init_args") or Namespace()
    if str(trainer.precision) not in PRECISIONS:
        yield f"trainer.precision: got {trainer.precision}; give {', '.join(PRECISIONS[:2])}, or model.backbone.dtype"
    if trainer.accumulate_grad_batches != 1:
        place = "data" if "tokens_per_batch" in data else "model"
        yield (
            f"trainer.accumulate_grad_batches: got {trainer.accumulate_grad_batches}; leave it out and lower "
            f"{place}.tokens_per_batch, which splits a step without changing it"
        )
    for key in ("gradient_clip_val", "gradient_clip_algorithm"):
        if trainer[key] is not None:
            yield f"trainer.{key}: got {trainer[key]}; leave it out and set model.max_grad_norm"
    if command == "fit" and config.model.init_args.get("pairwise_judge") and config.get("evolution") is None:
        yield (
            "model.pairwise_judge: got true with evolution null, without which no pool is labelled; leave out one "
            "of them"
        )
    if command != "fit" and name == "RewardModule" and not config.get("ckpt_path"):
        yield f"{command}: got no checkpoint, so its model would be untrained; add --run_dir RUN --ckpt_path last"
