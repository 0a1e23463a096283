from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from ser_lightning.__main__ import main
from ser_lightning.errors import UserError
from ser_lightning.training.strategies import (
    ShardStrategy,
    check_strategy,
    device_problems,
    strategy_kind,
    strategy_notes,
    strategy_problems,
    supported_accelerator,
)


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("auto", "auto"),
        ("ddp", "ddp"),
        ("ddp_find_unused_parameters_true", "ddp"),
        (DDPStrategy(), "ddp"),
        ("fsdp", "fsdp"),
        ("fsdp_frozen", "fsdp"),
        (ShardStrategy(), "fsdp"),
        ("ser_lightning.training.strategies.ShardStrategy", "fsdp"),
        ("fsdp_cpu_offload", "FSDPStrategy"),
        ("lightning.pytorch.strategies.FSDPStrategy", "FSDPStrategy"),
        (FSDPStrategy(), "FSDPStrategy"),
        ("deepspeed_stage_3_offload", "deepspeed"),
        ("lightning.pytorch.strategies.DeepSpeedStrategy", "deepspeed"),
        (ModelParallelStrategy(), "model_parallel"),
    ],
)
def test_a_strategy_is_known_by_name_class_path_and_object(strategy, kind):
    assert strategy_kind(strategy) == kind
    assert bool(strategy_problems(strategy)) == (kind not in ("auto", "ddp", "fsdp"))


@pytest.mark.parametrize(("train", "quantize", "nearest"), [("lora", "nf4", "no nf4"), ("policy", "none", "use ddp")])
def test_a_body_in_shards_must_be_unpacked_and_of_a_reward_model(train, quantize, nearest):
    [line] = strategy_problems("fsdp", train, quantize)
    assert nearest in line
    assert not strategy_problems("ddp", train, quantize)
    assert not any(strategy_problems("fsdp", train) for train in ("full", "lora", "head"))


def test_deepspeeds_class_has_the_name_that_is_looked_for():
    assert DeepSpeedStrategy.__name__ == "DeepSpeedStrategy"  # it cannot be made without its package


@pytest.mark.parametrize("strategy", ["fsdp_cpu_offload", "deepspeed_stage_2"])
@pytest.mark.parametrize("config", ["rm.yaml", "sft.yaml"])
def test_a_refused_strategy_is_one_line_that_names_the_nearest_right_one(strategy, config, capsys):
    assert main(["fit", "--config", config, f"--trainer.strategy={strategy}"]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert (
        line.startswith("error: trainer.strategy: got ") and "; use fsdp for a reward model" in line and "ddp" in line
    )


def test_what_was_never_run_says_so_and_what_was_run_says_nothing():
    assert strategy_notes("auto", "cuda", 1, 1) == strategy_notes("ddp", "cpu", 2, 1) == []
    assert len(strategy_notes("ddp", "cuda", 2, 1)) == len(strategy_notes("ddp", "cuda", 2, 4)) == 1
    assert strategy_notes("fsdp", "cuda", 1, 1) == []  # benchmarks/gpu has run it, with lora and in full
    assert len(strategy_notes("fsdp", "cuda", 2, 1)) == 1 and not strategy_notes("fsdp", "cpu", 2, 1)
    assert "horovod has never been run" in strategy_notes("horovod", "cpu", 1, 1)[0]


@pytest.mark.parametrize(
    ("has_cuda", "has_mps", "given", "taken"),
    [
        (False, True, "auto", "cpu"),
        (True, True, "auto", "auto"),
        (False, False, "auto", "auto"),
        (False, True, "mps", "mps"),  # refused later, by name
    ],
)
def test_auto_is_the_cpu_where_the_only_gpu_is_apples(monkeypatch, has_cuda, has_mps, given, taken):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    assert supported_accelerator(given) == taken


def test_a_trainer_of_python_is_checked_as_well():
    trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    check_strategy(trainer, "lora", "none")
    assert device_problems(trainer) == []
    several = SimpleNamespace(strategy=trainer.strategy, precision_plugin=None, num_devices=1, num_nodes=3)
    with pytest.warns(UserWarning, match=r"^trainer.num_nodes: 3 nodes have never been run with this package"):
        check_strategy(several, "lora", "none")
    elsewhere = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("mps")),
        precision_plugin=SimpleNamespace(scaler="of gradients"),
        precision="16-mixed",
    )
    assert [problem.split(",")[0] for problem in device_problems(elsewhere)] == [
        "trainer.accelerator: got mps",
        "trainer.precision: got 16-mixed",
    ]
    trainer._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(UserError, match="got FSDPStrategy"):
        check_strategy(trainer, "lora", "none")
