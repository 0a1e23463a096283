"""Two processes do what one does, and end together."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from ser_lightning.__main__ import main
from tests.command_process import CommandProcess
from tests.helpers import read_csv
from tests.policy_runs import sft_flags

ROOT = Path(__file__).parents[2]
DDP = ("--trainer.devices=2", "--trainer.strategy=ddp")
SHARDS = ("--trainer.devices=2", "--trainer.strategy=fsdp")
ALONE = ("--trainer.devices=1", "--trainer.strategy=auto")
GOES_ON = (
    *("--evolution.restart=nothing", "--evolution.epochs_per_round=2", "--evolution.folds=0"),
    "--evolution.rule=ser_lightning.TopShareRule",
)


def _audits(name):
    return [pq.read_table(file).to_pydict() for file in sorted(Path(name).glob("rounds/*/audit.parquet"))]


def test_two_ranks_label_and_select_as_one_and_learn_the_same_weights(tiny_run, tiny_fit, on_two_ranks):
    assert "It is recommended" not in on_two_ranks("fit", *tiny_run, "--run_dir=two", *DDP)
    one, two = _audits(tiny_fit(name="one")), _audits("two")
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        assert len(set(b["pair_id"])) == len(b["pair_id"])  # the pool of 55 does not divide evenly
        assert [a[k] for k in ("pair_id", "label", "kept")] == [b[k] for k in ("pair_id", "label", "kept")]
        assert a["reward_a"] == pytest.approx(b["reward_a"], abs=1e-4)
    tokens = [[row["tokens"] for row in read_csv(f"{name}/rounds.csv")] for name in ("one", "two")]
    assert tokens[0] == tokens[1]
    states = [torch.load(f"{name}/checkpoints/previous.ckpt", weights_only=True) for name in ("one", "two")]
    costs = [next(s for k, s in state["callbacks"].items() if "Evolution" in k)["cost"] for state in states]
    counts = [cost["train_folds"]["tokens"] for cost in costs]
    assert counts[0] == counts[1] > 0  # what a resume goes on from: of all ranks, not of the one that saved
    models = [torch.load(f"{name}/rounds/1/model.pt", weights_only=True)["weights"] for name in ("one", "two")]
    assert all(torch.allclose(models[0][k], models[1][k], atol=1e-4) for k in models[0])


def test_two_ranks_end_alike_when_nothing_is_kept(tiny_run, tiny_fit, on_two_ranks):
    flags = ("--evolution.rule.target=0.9999999", "--model.optimizer.init_args.lr=1e-9")
    on_two_ranks("fit", *tiny_run, *flags, "--run_dir=two", *DDP)
    one, two = _audits(tiny_fit(*flags, name="one")), _audits("two")
    assert len(one) == len(two) == 1
    assert one[0]["kept"] == two[0]["kept"] == [False] * len(one[0]["kept"])


def test_two_ranks_measure_as_one_and_nothing_says_otherwise(tiny_fit, pairs_file, on_two_ranks):
    words = ("test", f"--run_dir={tiny_fit()}", "--ckpt_path=last", f"--data.eval_sets={{more: {pairs_file}}}")
    said, figures = [on_two_ranks(*words, *DDP)], [Path("run/evaluation-test.json").read_text()]
    assert main([*words]) == 0
    figures.append(Path("run/evaluation-test.json").read_text())
    one, two = ({k: v for k, v in json.loads(text)["more"].items() if isinstance(v, float)} for text in figures)
    assert one == pytest.approx(two, abs=1e-5) and "It is recommended" not in said[0]


BREAK = """
import os, signal, sys
from ser_lightning.callbacks.evolution import EvolutionCallback
from ser_lightning.errors import UserError
count = EvolutionCallback.on_train_batch_end

def fail(self, trainer, *args):
    count(self, trainer, *args)
    if trainer.current_epoch == 1 and trainer.global_rank == {rank}:
        {action}

EvolutionCallback.on_train_batch_end = fail
from ser_lightning.__main__ import main
from tests.policy_runs import sft_flags
sys.exit(main(sys.argv[1:]))
"""


def _end_of_broken(rank, action, *flags):
    """How a job of two ranks ends of which one is broken, and what it says."""
    Path("broken.py").write_text(BREAK.format(rank=rank, action=action))
    os.environ["PYTHONPATH"] = str(ROOT)  # of rank 1, which Lightning starts
    job = CommandProcess("fit", *flags, *DDP, script="broken.py")
    _, said = job.communicate()
    assert "Traceback" not in said, said
    return job.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "action", "first"),
    [
        (1, "raise UserError('disk: got a mouse; get a cat')", "error: disk: got a mouse; get a cat"),
        (0, "os.kill(os.getpid(), signal.SIGKILL)", "error: ranks: got 'Connection "),
        # Lightning, which started it, may be faster in seeing it than the collective operation.
        (1, "os.kill(os.getpid(), signal.SIGKILL)", "(error: ranks: got 'Connection |.* terminated with code -9)"),
    ],
)
def test_a_rank_that_dies_ends_the_job_with_the_first_error_on_top_and_the_run_goes_on(
    tiny_run, tiny_fit, on_two_ranks, rank, action, first
):
    code, said = _end_of_broken(rank, action, *tiny_run, "--run_dir=run")
    assert code != 0
    lines = [line for line in said.splitlines() if line.startswith("error: ") or "terminated with" in line]
    assert lines and re.match(first, lines[0]), said
    on_two_ranks("fit", *tiny_run, "--run_dir=run", *DDP, "--ckpt_path=last")
    assert [audit["pair_id"] for audit in _audits("run")] == [a["pair_id"] for a in _audits(tiny_fit(name="one"))]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_sigterm_to_one_of_two_ranks_ends_both(tiny_run, rank):
    """In the middle of training, where the other one waits for it in a collective operation or it for the other."""
    code, said = _end_of_broken(rank, "os.kill(os.getpid(), signal.SIGTERM)", *tiny_run, "--run_dir=run")
    assert code != 0, said
    assert Path("run/checkpoints/last.ckpt").is_file()


WAITS = """
import os, signal, sys
from types import SimpleNamespace
import torch
from ser_lightning.training.rank_failure import EndAfterSigterm
torch.distributed.init_process_group("gloo", init_method="file://" + os.path.abspath("meet"), rank=int(sys.argv[1]),
                                     world_size=2)
signal.signal(signal.SIGTERM, lambda *_: None)
if sys.argv[1] == "0":
    EndAfterSigterm(0.1).on_fit_start(SimpleNamespace(world_size=2), None)
    print("waits", flush=True)
    torch.distributed.barrier()
else:
    signal.pause()
"""


def test_a_rank_that_waits_in_a_collective_operation_hears_a_sigterm(monkeypatch):
    """Python's handlers are not run while it waits; rank 1 never comes."""
    Path("waits.py").write_text(WAITS)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    ranks = [CommandProcess(str(number), script="waits.py") for number in range(2)]
    assert ranks[0].stdout.readline() == "waits\n"
    ranks[0].send_signal(signal.SIGTERM)
    ranks[0].communicate()
    assert ranks[0].returncode == 128 + signal.SIGTERM
    ranks[1].kill()


@pytest.mark.slow  # two interpreters that import PyTorch
def test_a_rank_ends_with_the_process_that_started_it():
    """Even where it waits for good, as a collective operation on a GPU does."""
    rank = "import time; from ser_lightning.training.rank_failure import end_with_parent; end_with_parent(0.1, 0.1); "
    rank += "print(1, flush=True); time.sleep(3600)"
    starter = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {rank!r}]); time.sleep(3600)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", starter]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True) as parent:
        assert parent.stdout.readline() == b"1\n"  # the rank is up
        parent.send_signal(signal.SIGKILL)
        assert parent.stdout.read() == b""  # closed by the rank's end


LETTERS = """
import json, os

def letters(prompts, responses):
    with open(f"said-{os.environ['WHO']}-{os.getpid()}.jsonl", "a") as file:
        for prompt, response in zip(prompts, responses):
            file.write(json.dumps([prompt[-1]["content"], response]) + "\\n")
    return [sum(map(ord, response)) % 7 / 4 - 1 for response in responses]
"""
"""A reward that writes down what it was asked."""


def _policy_flags(tiny_model_dir, pairs_file, name):
    return [
        *("fit", "--config", "ppo.yaml", f"--run_dir={name}", "--model.reward_model=said_rewards.letters"),
        *(f"--model.backbone.path={tiny_model_dir}", f"--data.path={pairs_file}", "--data.max_length=64"),
        *("--model.sampling.max_new_tokens=8", f"--model.sampling.stop={list('abcdefghijklmnopqrstuvwxyz')}"),
        *("--data.prompts_per_step=5", "--data.steps_per_epoch=2", "--data.num_val_prompts=5"),
        *("--model.ppo.minibatches=2", "--model.backbone.lora.dropout=0", "--data.val_prompts_per_batch=2"),
        *("--model.judge=null", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"),
        "--trainer.enable_model_summary=false",
    ]


def _learnt(name):
    """Trained weights and steps of a run, and what its policies have said, by process."""
    state = torch.load(Path(name, "checkpoints/last.ckpt"), weights_only=False)["state_dict"]
    return (
        state,
        read_csv(f"{name}/steps.csv"),
        [file.read_text().splitlines() for file in sorted(Path().glob(f"said-{name}-*.jsonl"))],
    )


@pytest.mark.parametrize(
    "settings",
    [
        ("--model.advantage=gae", "--model.backbone.train=full"),
        pytest.param(
            ("--model.advantage=rloo", "--model.responses_per_prompt=2", "--model.backbone.train=lora"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_ranks_learn_a_policy_as_one(tiny_model_dir, pairs_file, monkeypatch, on_two_ranks, settings):
    """Five prompts in a step and five held out: neither divides evenly."""
    Path("said_rewards.py").write_text(LETTERS)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.setenv("WHO", "one")
    assert main([*_policy_flags(tiny_model_dir, pairs_file, "one"), *settings]) == 0
    monkeypatch.setenv("WHO", "two")
    said = on_two_ranks(*_policy_flags(tiny_model_dir, pairs_file, "two"), *settings, *DDP)
    assert "It is recommended" not in said
    (state, steps, (said,)), (state_of_two, steps_of_two, parts) = _learnt("one"), _learnt("two")
    assert len(parts) == 2 and all(parts)
    assert sorted(parts[0] + parts[1]) == sorted(said)
    assert state.keys() == state_of_two.keys()
    assert all(torch.allclose(state[k], state_of_two[k], atol=1e-5) for k in state)
    assert [row["step"] for row in steps] == ["0", "2", "4"]
    for row, row_of_two in zip(steps, steps_of_two, strict=True):
        assert {k for k, v in row.items() if v} == {k for k, v in row_of_two.items() if v}
        for name in (k for k, v in row.items() if v):
            assert float(row[name]) == pytest.approx(float(row_of_two[name]), abs=1e-5, rel=1e-4), name


@pytest.mark.slow  # cached bodies of two ranks: the fast tests have their parts
def test_two_ranks_compute_the_features_that_one_does(tiny_run, on_two_ranks):
    head = ("--model.backbone.train=head", "--model.reading=auto")  # the question makes rows longer, for both alike
    assert main(["fit", *tiny_run, *head, "--data.cache_dir=cache_one", "--run_dir=one"]) == 0
    on_two_ranks("fit", *tiny_run, *head, "--data.cache_dir=cache_two", "--run_dir=two", *DDP)
    one, two = _audits("one"), _audits("two")
    files = [sorted(Path(name).glob("*/features-*.bin")) for name in ("cache_one", "cache_two")]
    assert len(files[0]) == 2  # of the seed at all candidates, and of every pair at what was chosen
    for first, second in zip(*files, strict=True):
        assert first.name == second.name
        states = [torch.from_file(str(f), size=f.stat().st_size // 4, dtype=torch.float32) for f in (first, second)]
        assert torch.allclose(*states, atol=1e-5)
    for a, b in zip(one, two, strict=True):
        assert [a[k] for k in ("pair_id", "label", "kept")] == [b[k] for k in ("pair_id", "label", "kept")]


@pytest.mark.slow
def test_two_ranks_forecast_the_labels_that_one_does(tiny_run, on_two_ranks):
    head = ("--model.backbone.train=head", "--model.reading=[mean@1]", "--data.seed_fraction=0.85")
    assert main(["fit", *tiny_run, *head, "--run_dir=one"]) == 0
    on_two_ranks("fit", *tiny_run, *head, "--run_dir=two", *DDP)
    one, two = (json.loads(Path(run, "advice.json").read_text()) for run in ("one", "two"))
    assert [gain["labels"] for gain in one["labels"]] == [100, 200] and one["seed_pairs"] == two["seed_pairs"]
    for mine, theirs in zip(one["labels"], two["labels"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.slow
def test_a_frozen_body_in_shards_learns_what_a_whole_one_does(tiny_run, tiny_fit, on_two_ranks):
    """Micro-batches of a few tokens: the ranks have different numbers of them, and must not wait for one another."""
    settings = ["--model.backbone.train=lora", "--model.backbone.lora.dropout=0", "--data.tokens_per_batch=100"]
    said = on_two_ranks("fit", *tiny_run, *settings, "--run_dir=two", *SHARDS)
    one, two = _audits(tiny_fit(*settings, name="one")), _audits("two")
    for a, b in zip(one, two, strict=True):
        assert [a[k] for k in ("pair_id", "label", "kept")] == [b[k] for k in ("pair_id", "label", "kept")]
        assert a["reward_a"] == pytest.approx(b["reward_a"], abs=1e-4)
    assert "weights of the body spread over 2 ranks" in said
    models = [torch.load(f"{name}/rounds/1/model.pt", weights_only=True) for name in ("one", "two")]
    assert models[0]["identity"] == models[1]["identity"]
    weights = [model["weights"] for model in models]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(weights[0][k], weights[1][k], atol=1e-4) for k in weights[0])
    assert main(["test", "--run_dir=two", "--ckpt_path=last", *ALONE]) == 0


def _weights(name, number=1):
    return torch.load(f"{name}/rounds/{number}/model.pt", weights_only=True)["weights"]


def _go_on_in_the_last_phase(of, name, *extra):
    """The command line for a copy of a finished run, put back into the middle of its last phase."""
    shutil.copytree(of, name)
    Path(name, "checkpoints/previous.ckpt").replace(Path(name, "checkpoints/last.ckpt"))
    shutil.rmtree(Path(name, "rounds/1"))
    return ["fit", f"--run_dir={name}", "--ckpt_path=last", *extra]


@pytest.mark.slow  # a frozen one is in the fast tests
def test_a_trained_body_in_shards_learns_what_a_whole_one_does_and_goes_on_from_its_checkpoints(tiny_run, on_two_ranks):
    """SGD, in which gradients that were added up or clipped wrongly would show; few tokens, so many micro-batches."""
    sgd = ("--model.optimizer=torch.optim.SGD", '--model.optimizer.init_args={"lr": 0.1, "momentum": 0.9}')
    flags = [*tiny_run, *GOES_ON, *sgd, "--model.max_grad_norm=0.02", "--data.tokens_per_batch=100"]
    assert main(["fit", *flags, "--run_dir=one"]) == 0
    on_two_ranks("fit", *flags, "--run_dir=two", "--model.backbone.gradient_checkpointing=true", *SHARDS)
    for a, b in zip(_audits("one"), _audits("two"), strict=True):
        assert [a[k] for k in ("pair_id", "label", "kept")] == [b[k] for k in ("pair_id", "label", "kept")]
        assert a["reward_a"] == pytest.approx(b["reward_a"], abs=1e-4)
    first, one, two = _weights("one", 0), _weights("one"), _weights("two")
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)
    assert max(float((one[k] - first[k]).abs().max()) for k in one) > 1e-3
    paths = (f"{name}/checkpoints/previous.ckpt" for name in ("one", "two"))
    states = [torch.load(path, weights_only=True)["optimizer_states"][0]["state"] for path in paths]
    momenta = [[values["momentum_buffer"] for values in state.values()] for state in states]
    assert len(momenta[0]) == len(one)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*momenta, strict=True))
    on_two_ranks(*_go_on_in_the_last_phase("two", "again"))
    again = _weights("again")
    assert all(torch.equal(two[k], again[k]) for k in two)
    assert main(_go_on_in_the_last_phase("two", "alone", *ALONE)) == 0
    alone = _weights("alone")
    assert all(torch.allclose(two[k], alone[k], atol=1e-5) for k in two)
    assert main(["test", "--run_dir=two", "--ckpt_path=last", *ALONE]) == 0
    assert main(["export", "two"]) == 0


@pytest.mark.slow
def test_one_rank_in_shards_is_one_process(tiny_run):
    """With AdamW, whose state every phase hands on to that of the next round."""
    assert main(["fit", *tiny_run, *GOES_ON, "--run_dir=one"]) == 0
    flags = [*tiny_run, *GOES_ON, "--run_dir=shards", "--trainer.devices=1", "--trainer.strategy=fsdp"]
    process = CommandProcess("fit", *flags)
    said = process.communicate()
    assert process.returncode == 0, said
    states = [torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("one", "shards")]
    [weights, in_shards] = (state["state_dict"] for state in states)
    assert all(torch.allclose(weights[k], in_shards[k], atol=1e-6) for k in weights)
    [one, other] = (state["optimizer_states"][0]["state"] for state in states)
    assert one.keys() == other.keys() and len(one) == len(weights)
    for i in one:
        assert one[i]["step"] == other[i]["step"]
        assert all(torch.allclose(one[i][k], other[i][k], atol=1e-6) for k in ("exp_avg", "exp_avg_sq"))


def test_two_ranks_imitate_as_one(tiny_model_dir, pairs_file, on_two_ranks):
    """Responses of a step of 5 do not divide evenly."""
    flags = [*sft_flags(tiny_model_dir, pairs_file), "--data.responses_per_step=5", "--trainer.max_epochs=2"]
    assert main(["fit", *flags, "--run_dir=one"]) == 0
    on_two_ranks("fit", *flags, "--run_dir=two", *DDP)
    start, one, two = (
        torch.load(f"{name}/checkpoints/{file}.ckpt", weights_only=True)["state_dict"]
        for name, file in (("one", "previous"), ("one", "last"), ("two", "last"))
    )
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)
    assert not all(torch.equal(start[k], one[k]) for k in one)
