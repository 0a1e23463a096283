"""Which strategies a training runs under: those known to be wrong are refused, untested ones warn once.

`--trainer.strategy fsdp` is one of our own: a body in shards, and DDP for what is whole on every rank.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy, StrategyRegistry
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ser_lightning.errors import UserError, raise_problems
from ser_lightning.utils.collectives import cut_like, gathered

_REASONS = {
    "FSDPStrategy": "is Lightning's own and cannot hold weights of two number formats together (a body and its float32 "
    "head and adapters)",
    "model_parallel": "needs a module that shards itself, which none of ours does",
    "deepspeed": "ends a step with every backward pass, as Lightning drives it, but a step here has as many "
    "micro-batches as its tokens need",
    "xla": "has no kernels for the body in 4 bits and none of our masks was tried on it",
}
_NEAREST = (
    "use fsdp for a reward model, this package's own, which spreads weights, gradients and optimiser state over the "
    "ranks as ZeRO-3 does, and ddp for a policy"
)


class ShardStrategy(DDPStrategy):
    """Shards a body over the ranks and gathers it layer by layer (FSDP2); DDP for the head and for adapters.

    A body that is trained has its gradients and its optimiser's state in the same shards. Checkpoints hold whole
    tensors, as those of one process do.
    """

    def setup(self, trainer: Trainer) -> None:
        """As DDP does. Shards that were gathered in inference mode could not be trained on afterwards."""
        for loop in (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop):
            loop.inference_mode = False
        trainer.predict_loop.inference_mode = False
        super().setup(trainer)

    def shard(self, module: nn.Module, body: nn.Module) -> None:
        """Spread the weights of a body over the ranks.

        Args:
            module: the LightningModule, for DDP to know what it is not to touch.
            body: a transformers body, as peft may wrap it, whole and equal on every rank.
        """
        spread(body, init_device_mesh(self.root_device.type, (self.world_size,)))
        split = {name: p.numel() for name, p in module.named_parameters() if isinstance(p, DTensor)}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(split))
        rank_zero_info(f"Strategy: {sum(split.values()):,} weights of the body spread over {self.world_size} ranks")

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of whole weights, as rank 0 is to save it; all ranks must ask together."""
        state: dict[str, Any] = super().optimizer_state(optimizer)
        return {**state, "state": {i: _gathered_state(values) for i, values in state["state"].items()}}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take back what `optimizer_state` gave, with any number of ranks."""
        states = [
            {**state, "state": _cut_states(state["state"], optimizer)}
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        ]
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})


def spread(body: nn.Module, mesh: DeviceMesh) -> None:
    """Put a body in shards over a mesh of one dimension, one group for each layer and one for the rest."""
    kept = set(kept_whole(body))
    for group in [*layers_of(body), body]:
        # What stays gathered after a forward pass without gradients would not see what is loaded later.
        fully_shard(group, mesh=mesh, reshard_after_forward=True, ignored_params=kept)


def kept_whole(body: nn.Module) -> list[nn.Parameter]:
    """The weights of a body that are not sharded: the few that are trained in a frozen one, its adapters."""
    trained = [p for p in body.parameters() if p.requires_grad]
    return trained if len(trained) < len(list(body.parameters())) else []


def layers_of(body: nn.Module) -> Iterator[nn.Module]:
    """The layers of a body: the members of its outermost lists of modules."""
    for child in body.children():
        yield from child if isinstance(child, nn.ModuleList) else layers_of(child)


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    """In the order in which the optimiser's state numbers them."""
    return (p for group in optimizer.param_groups for p in group["params"])


def _gathered_state(values: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state of one weight: tensors whole, the rest as it is."""
    return {**values, **gathered({name: v for name, v in values.items() if isinstance(v, DTensor)})}


def _cut_states(states: dict[int, dict[str, Any]], optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """An optimiser's saved state: what has a weight's shape goes into the weight's shards, the rest stays as it is."""
    parameters = list(_parameters(optimizer))

    def cut(value: Any, like: Tensor) -> Any:
        return cut_like(value, like) if isinstance(value, Tensor) and value.shape == like.shape else value

    return {i: {name: cut(v, parameters[i]) for name, v in values.items()} for i, values in states.items()}


StrategyRegistry.register("fsdp", ShardStrategy, description=ShardStrategy.__doc__, override=True)
StrategyRegistry.register("fsdp_frozen", ShardStrategy, description="What runs of earlier versions call fsdp.")
FSDPStrategy.get_registered_strategies().remove("fsdp")  # Lightning refuses what is in this list without a GPU


def strategy_kind(strategy: str | Strategy) -> str:
    """`auto`, `ddp`, `fsdp`, `FSDPStrategy`, `deepspeed`, `model_parallel`, `xla` or the bare name of another one.

    `fsdp` is ours; Lightning's own is `FSDPStrategy`.

    Args:
        strategy: as `--trainer.strategy` takes it (`ddp_find_unused_parameters_true`, a class path), or the object.
    """
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    name = name.rpartition(".")[2].removesuffix("Strategy")
    kinds = {
        "auto": "auto",
        "SingleDevice": "auto",
        "fsdp": "fsdp",
        "fsdp_frozen": "fsdp",
        "Shard": "fsdp",
        "ModelParallel": "model_parallel",
        "model_parallel": "model_parallel",
        "SingleDeviceXLA": "xla",
    }
    starts = {"ddp": "ddp", "fsdp": "FSDPStrategy", "deepspeed": "deepspeed", "xla": "xla"}
    by_start = (kind for start, kind in starts.items() if name.lower().startswith(start))
    return kinds.get(name) or next(by_start, name.lower())


def strategy_problems(strategy: str | Strategy, train: str = "lora", quantize: str = "none") -> list[str]:
    """Known problems of a strategy, one line each, with the closest strategy that works.

    Args:
        train: `backbone.train` of a reward model, `policy` for a stage that samples.
        quantize: `backbone.quantize`.
    """
    kind = strategy_kind(strategy)
    if kind in _REASONS:
        return [f"trainer.strategy: got {kind}, which {_REASONS[kind]}; {_NEAREST}"]
    if kind != "fsdp":
        return []
    got = "trainer.strategy: got fsdp"
    if train == "policy":
        return [f"{got} for a policy, whose ranks sample different numbers of tokens and would wait for ever; use ddp"]
    if quantize != "none":
        return [f"{got} with quantize {quantize}, whose packed weights cannot be split; use ddp with it, or no nf4"]
    return []


def strategy_notes(strategy: str | Strategy, device: str, num_devices: int, num_nodes: int) -> list[str]:
    """What has never been tested, one line each; it may work."""
    kind = strategy_kind(strategy)
    found = []
    if kind not in ("auto", "ddp", "fsdp", *_REASONS):
        found.append(f"trainer.strategy: {kind} has never been run with this package")
    if num_nodes > 1:
        found.append(f"trainer.num_nodes: {num_nodes} nodes have never been run with this package, two processes have")
    elif num_devices > 1 and device != "cpu":
        found.append(f"trainer.devices: {num_devices} have been run with this package on a CPU only, not on {device}")
    return found


def supported_accelerator(accelerator: str | Any) -> str | Any:
    """The accelerator to train on: as given, but the CPU for `auto` if the only GPU is Apple's (`device_problems`)."""
    if accelerator != "auto" or torch.cuda.is_available() or not torch.backends.mps.is_available():
        return accelerator
    rank_zero_info("Accelerator: the CPU, since Apple's GPUs have no float64, in which a step's figures are summed.")
    return "cpu"


def device_problems(trainer: Trainer) -> list[str]:
    """What a trainer's device or number format cannot do, one line each."""
    found = []
    if trainer.strategy.root_device.type == "mps":
        found.append(
            "trainer.accelerator: got mps, whose GPUs have no float64, in which a step's figures are summed; use cpu"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        found.append(
            f"trainer.precision: got {trainer.precision}, in which gradients would be clipped and checked while they "
            "are scaled; use bf16-mixed or 32-true"
        )
    return found


def check_strategy(trainer: Trainer, train: str, quantize: str) -> None:
    """`UserError` for what is known to be wrong with a trainer's strategy, a warning for what was never run.

    `train` and `quantize` are as for `strategy_problems`.
    """
    raise_problems(strategy_problems(trainer.strategy, train, quantize))
    raise_problems(device_problems(trainer))
    device = trainer.strategy.root_device.type
    for note in strategy_notes(trainer.strategy, device, trainer.num_devices, trainer.num_nodes):
        rank_zero_warn(note)


def check_optimizer(optimizer: Optimizer, is_sharded: bool, name: str) -> None:
    """`UserError` for an optimiser whose kernels cannot read weights in shards."""
    if is_sharded and type(optimizer).__module__.startswith("bitsandbytes"):
        raise UserError(
            f"{name}: got {type(optimizer).__name__} with fsdp and backbone.train full, whose shards it cannot read; "
            "use torch.optim.AdamW, whose state fsdp spreads over the ranks"
        )
