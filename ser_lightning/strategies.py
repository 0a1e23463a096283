"""Which strategies a training runs under: what is known to be wrong is refused, what nobody has run says so once.

`--trainer.strategy fsdp_frozen` is one of our own: DDP for what is trained, and a frozen body spread over the ranks.
"""

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy, StrategyRegistry
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ser_lightning.errors import raise_problems

_REASONS = {
    "fsdp": "cannot hold weights of two number formats together (a body and its float32 head and adapters)",
    "model_parallel": "needs a module that shards itself, which none of ours does yet",
    "deepspeed": "takes one backward pass a step, but a step here has as many micro-batches as its tokens need",
    "xla": "has no kernels for the body in 4 bits and none of our masks was tried on it",
}
_NEAREST = (
    "use ddp; where a body does not fit one device use model.init_args.backbone.quantize nf4 with ddp, or fsdp_frozen, "
    "which spreads a frozen body over the ranks"
)


class FrozenShardStrategy(DDPStrategy):
    """DDP whose frozen body lies in shards, one a rank, gathered layer by layer as it computes (FSDP2).

    Adapters and head are whole on every rank, so checkpoints, restarts and exports are those of DDP.
    """

    def shard(self, module: nn.Module, body: nn.Module) -> None:
        """Spread the frozen weights of a body over the ranks.

        Args:
            module: the LightningModule, for DDP to know what it is not to touch.
            body: a transformers body, as peft may wrap it, whole and equal on every rank.
        """
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        trained = {p for p in body.parameters() if p.requires_grad}
        layers = [m for m in body.modules() if isinstance(m, nn.ModuleList)]
        for layer in [*(layer for group in layers for layer in group), body]:
            fully_shard(layer, mesh=mesh, ignored_params=trained)
        split = {name: p.numel() for name, p in module.named_parameters() if isinstance(p, DTensor)}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(split))
        rank_zero_info(f"Strategy: {sum(split.values()):,} weights of the body spread over {self.world_size} ranks")


StrategyRegistry.register("fsdp_frozen", FrozenShardStrategy, description=FrozenShardStrategy.__doc__)


def strategy_kind(strategy: str | Strategy) -> str:
    """`auto`, `ddp`, `fsdp_frozen`, `fsdp`, `deepspeed`, `model_parallel`, `xla` or the bare name of another one.

    Args:
        strategy: as `--trainer.strategy` takes it (`ddp_find_unused_parameters_true`, a class path), or the object.
    """
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    name = name.rpartition(".")[2].removesuffix("Strategy").lower()
    if name in ("auto", "singledevice"):
        return "auto"
    kinds = {
        "frozenshard": "fsdp_frozen",
        "fsdp_frozen": "fsdp_frozen",
        "modelparallel": "model_parallel",
        "model_parallel": "model_parallel",
        "singledevicexla": "xla",
    }
    starts = (kind for kind in ("ddp", "fsdp", "deepspeed", "xla") if name.startswith(kind))
    return kinds.get(name) or next(starts, name)


def strategy_problems(strategy: str | Strategy, train: str = "lora", quantize: str = "none") -> list[str]:
    """What is known to be wrong with a strategy, a line each, with the nearest right one.

    Args:
        strategy: as for `strategy_kind`.
        train: `backbone.train` of a reward model, `policy` for a stage that samples.
        quantize: `backbone.quantize`.
    """
    kind = strategy_kind(strategy)
    if kind in _REASONS:
        return [f"trainer.strategy: got {kind}, which {_REASONS[kind]}; {_NEAREST}"]
    if kind != "fsdp_frozen":
        return []
    got = "trainer.strategy: got fsdp_frozen"
    if train == "policy":
        return [f"{got} for a policy, whose ranks sample different numbers of tokens and would wait for ever; use ddp"]
    if train == "full":
        return [f"{got} with backbone.train full, where nothing is frozen; use lora or head, or ddp"]
    if quantize != "none":
        return [f"{got} with quantize {quantize}, whose packed weights cannot be split; use ddp with it, or no nf4"]
    return []


def strategy_notes(strategy: str | Strategy, device: str, num_devices: int, num_nodes: int) -> list[str]:
    """What has never been run, a line each; it may work.

    Args:
        strategy: as for `strategy_kind`.
        device: type of the devices, such as `cpu` or `cuda`.
        num_devices: processes on a node.
        num_nodes: nodes.
    """
    kind = strategy_kind(strategy)
    found = []
    if kind not in ("auto", "ddp", "fsdp_frozen", *_REASONS):
        found.append(f"trainer.strategy: {kind} has never been run with this package")
    if num_nodes > 1:
        found.append(f"trainer.num_nodes: {num_nodes} nodes have never been run with this package, two processes have")
    elif num_devices > 1 and device != "cpu":
        found.append(f"trainer.devices: {num_devices} have been run with this package on a CPU only, not on {device}")
    return found


def check_strategy(trainer: Trainer, train: str, quantize: str) -> None:
    """`UserError` for what is known to be wrong with a trainer's strategy, a warning for what was never run.

    `train` and `quantize` are as for `strategy_problems`.
    """
    raise_problems(strategy_problems(trainer.strategy, train, quantize))
    device = trainer.strategy.root_device.type
    for note in strategy_notes(trainer.strategy, device, trainer.num_devices, trainer.num_nodes):
        rank_zero_warn(note)
