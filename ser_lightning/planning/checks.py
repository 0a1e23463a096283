"""What a plan says of a run beside its figures: a line each."""

from collections.abc import Iterable
from typing import Any

from ser_lightning.models.adapter_reward import AdapterRewardModel
from ser_lightning.modules.ppo import PPOModule
from ser_lightning.modules.sft import SFTModule
from ser_lightning.planning.memory import device_bytes
from ser_lightning.rl.reward_functions import ModelReward
from ser_lightning.training.strategies import strategy_kind, strategy_notes


def check(name: str, note: str | None, fine: str = "") -> dict[str, str]:
    """A line of the checks: a note, or what is fine where there is none."""
    return {"check": name, "says": "ok" if note is None else "note", "text": fine if note is None else note}


def reward_checks(module: SFTModule | PPOModule) -> Iterable[dict[str, str]]:
    """What each reward of a policy holds in memory beside it."""
    for source, reward in module.rewards.items() if isinstance(module, PPOModule) else ():
        if not isinstance(reward, ModelReward):
            yield check("reward", f"{source}: a function, whose memory is not counted")
        elif isinstance(reward.reward_model, AdapterRewardModel):
            yield check("reward", None, f"{source}: an adapter and a head on the policy's base")
        else:
            yield check("reward", None, f"{source}: a model of its own")


def device_checks(trainer: Any, device: str) -> Iterable[dict[str, str]]:
    """Warnings: no such GPU here, or a set-up that was never tested."""
    if device == "cuda" and device_bytes(device)[0] != "GPU":
        yield check("device", "there is no GPU here: memory is compared with that of this machine")
    if strategy_kind(trainer.strategy) == "fsdp":
        yield check("strategy", None, f"fsdp: memory is that of one of {ranks_of(trainer)} ranks")
    for note in strategy_notes(trainer.strategy, device, _count(trainer.devices), trainer.num_nodes):
        yield check("strategy", note)


def ranks_of(trainer: Any) -> int:
    """Processes of a run, by the settings of its trainer; `auto` devices count as one."""
    return _count(trainer.devices) * int(trainer.num_nodes)


def _count(devices: Any) -> int:
    """Processes on a node, as far as the setting says."""
    if isinstance(devices, list):
        return len(devices)
    text = str(devices)
    return max(1, int(text)) if text.lstrip("-").isdigit() else text.count(",") + 1
