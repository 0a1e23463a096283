"""The plan of a run against the run itself, and the same errors as the run's."""

import json
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from ser_lightning.__main__ import main
from ser_lightning.data.layouts import PADDED, Layout
from ser_lightning.datamodules.responses import ResponseSteps
from ser_lightning.evolution import comparison_states
from ser_lightning.models.readings import read_states
from ser_lightning.planning import workload
from ser_lightning.planning.text import short
from ser_lightning.planning.workload import count_tokens, largest_batch
from ser_lightning.rl.rollout import Generator
from ser_lightning.runs.files import RoundRow, write_rounds
from ser_lightning.training import reading_choice
from tests.helpers import data, often, problems_of, read_csv
from tests.policy_runs import QUIET, sft_flags


def plan(capsys, *args):
    """What `plan` prints and writes."""
    assert main(["plan", *args, "--json=plan.json", "--overwrite"]) == 0
    return capsys.readouterr().out, json.loads(Path("plan.json").read_text())


MORE = {
    "as it is": [],
    "no folds": [
        "--evolution.folds=0",
        "--evolution.rule=ser_lightning.TopShareRule",
    ],
    "padded": ["--model.layout=padded"],
}


@pytest.mark.parametrize("more", often(MORE, "as it is", "no folds"))
def test_rounds_read_the_tokens_that_were_foretold(capsys, tiny_run, tiny_fit, more):
    _, found = plan(capsys, *tiny_run, *more)
    tiny_fit(*more)
    for row, work in zip(read_csv("run/rounds.csv"), found["rounds"]["rounds"], strict=False):
        low, high = work["tokens"]
        assert low <= int(row["tokens"]) <= high
        assert int(row["round"]) == work["round"]
        if row["round"] == "0":
            assert low == high == int(row["tokens"])
    assert len(found["rounds"]["rounds"]) == 2


def test_no_weights_are_read_and_no_run_is_made(capsys, tiny_run, tiny_model_dir, monkeypatch):
    shutil.copytree(tiny_model_dir, "model")
    Path("model/model.safetensors").unlink()
    before = set(Path.cwd().iterdir())
    text, found = plan(capsys, *tiny_run, "--model.backbone.path=model")
    assert {path.name for path in set(Path.cwd().iterdir()) - before} == {"plan.json"}
    model = transformers.AutoModelForSequenceClassification.from_config(
        transformers.AutoConfig.from_pretrained("model", num_labels=1)
    )
    assert found["model"]["all"]["trained"] == sum(p.numel() for p in model.parameters())
    assert found["memory"]["kinds"]["optimiser"]["training"] > 8 * found["model"]["all"]["trained"]


def test_the_tables_hold_the_figures_and_fit_80_columns(capsys, tiny_run):
    text, found = plan(capsys, *tiny_run, "--trainer.strategy=ddp", "--trainer.accelerator=gpu", "--trainer.devices=2")
    assert max(map(len, text.splitlines())) <= 80
    for part in ("Model ", "Memory, with AdamW", "Data, ", "Rounds", "Checks"):
        assert f"\n{part}" in f"\n{text}"
    assert f"{found['model']['all']['trained']:,}" in text and "no rate is known" in text
    assert "on a CPU only, not on" in " ".join(text.split())
    splits = found["data"]["splits"]
    assert sum(splits[name]["pairs"] for name in splits if name != "all") == splits["all"]["pairs"] == 80
    assert found["data"]["rows"] == 80 and found["data"]["dropped"] == 0


def test_a_rate_gives_a_time(capsys, tiny_run):
    _, found = plan(capsys, *tiny_run, "--pairs_per_second=2")
    work = found["rounds"]["rounds"][0]
    assert work["seconds"][0] == (work["trained_pairs"][0] + work["scored_pairs"]) / 2
    Path("old").mkdir()
    figures = {f.name: 0 for f in fields(RoundRow)}
    rows = [{"round": 0, "tokens": 100, "seconds": 3.0}, {"round": 1, "tokens": 500, "seconds": 2.0, "delivered": True}]
    write_rounds("old", [RoundRow(**{**figures, "delivered": False, **row}) for row in rows])
    text, found = plan(capsys, *tiny_run, "--like=old")
    work = found["rounds"]["rounds"][1]
    assert work["seconds"] == [n / 120 for n in work["tokens"]]
    assert "Time at 120 tokens a second, as in old." in text
    write_rounds("old", [RoundRow(**{**figures, "delivered": True})])
    [line] = problems_of(capsys, "plan", *tiny_run, "--like=old")
    assert line == "--like: old has rounds of 0 seconds; give a longer run, or --pairs_per_second"
    text, found = plan(capsys, *tiny_run, "--evolution=null", "--trainer.devices=[0,1]")
    assert found["rounds"]["rounds"] == [] and "Rounds: none, `evolution` is null" in text


def test_what_does_not_fit_is_said_with_what_helps(capsys, tiny_run, monkeypatch):
    monkeypatch.setattr("ser_lightning.planning.memory.device_bytes", lambda _: ("machine", 1000))
    monkeypatch.setattr("ser_lightning.cli.plan.device_bytes", lambda _: ("machine", 1000))
    text, _ = plan(capsys, *tiny_run)
    assert (
        "It will not fit. Lower data.tokens_per_batch or data.tokens_per_scoring_batch, train adapters, quantize to "
        "nf4, or set backbone.gradient_checkpointing."
    ) in " ".join(text.split())


def test_a_fit_without_an_end_is_said_to_have_none(capsys, tiny_model_dir, pairs_file):
    text, found = plan(capsys, *sft_flags(tiny_model_dir, pairs_file), "--trainer.max_epochs=-1")
    assert found["steps"]["total"] is None
    assert "Nothing ends the run: set trainer.max_epochs or trainer.max_steps." in text


def test_counts_are_short():
    assert [short(number) for number in (999, 8123, 1_250_000, 3.4e9)] == ["999", "8,123", "1.2M", "3.4G"]


def test_a_cached_body_costs_every_pair_once(capsys, tiny_run):
    text, found = plan(capsys, *tiny_run, "--model.backbone.train=head", "--pairs_per_second=2")
    cached = found["rounds"]["cached"]
    assert cached["tokens"] == found["data"]["splits"]["all"]["total"]
    assert found["rounds"]["rounds"][0]["seconds"] is None
    assert [work["tokens"] for work in found["rounds"]["rounds"]] == [[0, cached["tokens"]], [0, 0]]
    assert "computes every pair once" in text and found["model"]["all"]["trained"] == 16


@pytest.mark.parametrize(
    ("reading", "max_length"), [("last", 64), ("auto", 64), pytest.param("auto", 500, marks=pytest.mark.slow)]
)
def test_the_states_of_a_cached_body_take_the_disk_that_was_planned(capsys, tiny_run, reading, max_length):
    """Of 512 positions the question has room after 64 tokens, and none after 500."""
    flags = [*tiny_run, "--model.backbone.train=head", f"--model.reading={reading}", "--data.cache_dir=cache"]
    flags.append(f"--data.max_length={max_length}")
    text, found = plan(capsys, *flags)
    planned = found["rounds"]["cached"]["bytes"]
    assert main(["fit", *flags, "--run_dir=run"]) == 0
    assert sum(file.stat().st_size for file in Path("cache").glob("*/features-*.bin")) == planned
    assert f"take at most {planned / 1024:.1f} KiB in data.cache_dir" in text


def test_gradient_checkpointing_and_the_token_budget_change_memory_alone(capsys, tiny_run):
    def activations(*more):
        _, found = plan(capsys, *tiny_run, "--model.backbone.train=lora", *more)
        return found["memory"]["kinds"]["activations, estimate"]

    whole, less = activations(), activations("--model.backbone.gradient_checkpointing=true")
    assert less["training"] < whole["training"] and less["labelling"] == whole["labelling"]
    assert activations("--data.tokens_per_batch=200")["training"] < whole["training"]
    assert activations("--data.tokens_per_scoring_batch=200")["labelling"] < whole["labelling"]


def test_under_fsdp_memory_is_that_of_one_rank(capsys, tiny_run):
    ranks = ("--trainer.devices=2", "--trainer.num_nodes=2")
    _, whole = plan(capsys, *tiny_run, *ranks, "--trainer.strategy=ddp")
    _, part = plan(capsys, *tiny_run, *ranks, "--trainer.strategy=fsdp")
    assert part["model"] == whole["model"]
    for kind in ("weights", "optimiser", "gradients", "copy of the start"):
        share = part["memory"]["kinds"][kind]["training"] / whole["memory"]["kinds"][kind]["training"]
        assert 1 / 4 < share < 1 / 4 + 0.02, kind  # the head is whole
    assert {"check": "strategy", "says": "ok", "text": "fsdp: memory is that of one of 4 ranks"} in part["checks"]
    head = ("--model.backbone.train=head", "--trainer.strategy=fsdp")
    assert plan(capsys, *tiny_run, *head)[1]["rounds"]["cached"] is None
    packed = ("--model.optimizer=bitsandbytes.optim.AdamW8bit", "--trainer.strategy=fsdp")
    assert "model.optimizer: got AdamW8bit with fsdp" in problems_of(capsys, "plan", *tiny_run, *packed)[-1]


def check(found, name):
    return next(c for c in found["checks"] if c["check"] == name)


def test_the_tokenizer_is_checked(capsys, tiny_run):
    _, found = plan(capsys, *tiny_run)
    assert {check["says"] for check in found["checks"]} == {"ok"}
    assert check(found, "end of turn")["text"] == "'<eos>'" and check(found, "BOS")["text"] == "'<bos>' once"
    assert check(found, "length")["text"] == "data.max_length 64 of 512 positions"
    Path("bare.jinja").write_text("{% for m in messages %}{{ m['content'] }}|{% endfor %}")
    _, found = plan(capsys, *tiny_run, "--model.backbone.template=bare.jinja")
    assert "no token of its own" in check(found, "end of turn")["text"]
    assert check(found, "BOS")["text"] == "the template puts none"


def test_a_pad_that_is_the_eos_gives_way_to_a_spare_token(capsys, tiny_run, tiny_model_dir):
    shutil.copytree(tiny_model_dir, "model")
    file = Path("model/tokenizer_config.json")
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "pad_token": settings["eos_token"]}))
    flags = [*tiny_run, "--model.backbone.path=model"]
    assert check(plan(capsys, *flags)[1], "pad")["text"] == "'<pad>', not EOS"
    file = Path("model/tokenizer.json")
    file.write_text(file.read_text().replace("<pad>", "<gap>"))
    assert check(plan(capsys, *flags)[1], "pad")["text"] == "'<gap>', not EOS"
    Path("bare.jinja").write_text("{% for m in messages %}{{ m['content'] }}|{% endfor %}")
    text = check(plan(capsys, *flags, "--model.backbone.template=bare.jinja")[1], "pad")["text"]
    assert text == "'<eos>' is EOS as well, but ends no conversation"


WRONG = {
    "three at once": ["--data.sed_fraction=0.2", "--model.bakcbone.path=x", "--data.max_length=long"],
    "null": ["--model.center_rewards_coefficient=null"],
    "no model": ["--model.backbone.path=nowhere"],
    "no file": ["--data.path=pears.jsonl"],
    "full and nf4": ["--model.backbone.quantize=nf4"],
    "arguments of two parts": ["--model.warmup_share=1.9", "--data.pairs_per_step=0"],
    "an optimiser that refuses": ["--model.optimizer.init_args.weight_decay=-1"],
    "too many folds": ["--evolution.folds=30"],
    "no pool": ["--data.seed_fraction=1.0"],
    "a callback that refuses": [
        '--trainer.callbacks+={"class_path": "ModelCheckpoint", "init_args": {"save_top_k": -5}}',
    ],
    "no reloading": ["--trainer.reload_dataloaders_every_n_epochs=0"],
}


@pytest.mark.parametrize(
    "more",
    often(
        WRONG,
        *("no model", "arguments of two parts", "too many folds", "no pool", "a callback that refuses", "no reloading"),
    ),
)
def test_errors_are_those_of_fit(capsys, tiny_run, more):
    planned, fitted = (problems_of(capsys, command, *tiny_run, *more) for command in ("plan", "fit"))
    assert planned == fitted and planned


def test_what_is_known_to_be_wrong_is_said_after_the_tables(capsys, tiny_run):
    assert main(["plan", *tiny_run, "--trainer.strategy=deepspeed"]) == 2
    said = capsys.readouterr()
    assert "Checks" in said.out and "error: trainer.strategy: got deepspeed" in said.err
    assert main(["plan", *tiny_run, "--trainer.strategy=lightning.pytorch.strategies.FSDPStrategy"]) == 2
    assert "error: trainer.strategy: got FSDPStrategy" in capsys.readouterr().err


def test_rates_without_a_source_and_runs_that_train_nothing_are_refused(capsys, tiny_run, tiny_model_dir, pairs_file):
    assert "run: nowhere has no rounds.csv" in problems_of(capsys, "plan", *tiny_run, "--like=nowhere")[-1]
    assert "--pairs_per_second: got 0.0" in problems_of(capsys, "plan", *tiny_run, "--pairs_per_second=0")[-1]
    sft = sft_flags(tiny_model_dir, pairs_file)
    both = problems_of(capsys, "plan", *tiny_run, "--like=old", "--pairs_per_second=2")
    assert both[-1].endswith("--like: got old with --pairs_per_second, which says the rate; give one of them")
    for flag in ("--like=old", "--pairs_per_second=2.0"):
        name, _, value = flag.partition("=")
        found = problems_of(capsys, "plan", *sft, flag)
        assert found == [f"{name}: got {value}; no rate is known of a policy, leave it out"]
    found = problems_of(capsys, "plan", "--config", "generate.yaml")
    assert found == ["plan: got GenerateModule, which trains nothing; give rm.yaml, sft.yaml or ppo.yaml"]
    demos = "lightning.pytorch.demos.boring_classes"
    [line] = problems_of(capsys, "plan", f"--model={demos}.BoringModel", f"--data={demos}.BoringDataModule")
    assert line.startswith("plan: got BoringModel with BoringDataModule; it knows RewardModule with PreferenceData")


# Policies


@pytest.fixture(autouse=True)
def _rewards(monkeypatch):
    """A reward under a dotted path."""
    judge = lambda prompts, responses: [float(len(text)) for text in responses]  # noqa: E731
    monkeypatch.setitem(sys.modules, "my_rewards", SimpleNamespace(lengths=judge))


@pytest.fixture
def ppo_flags(tiny_model_dir, pairs_file):
    """`--config ppo.yaml` and the flags that make it a run of some seconds: one pass over the prompts, in 8 steps."""
    return [
        *("--config", "ppo.yaml", f"--model.backbone.path={tiny_model_dir}", "--model.reward_model=my_rewards.lengths"),
        *("--model.judge=null", "--model.sampling.max_new_tokens=5", "--model.advantage=rloo"),
        *("--model.responses_per_prompt=2", "--model.ppo.minibatches=2", f"--data.path={pairs_file}"),
        *("--data.max_length=64", "--data.prompts_per_step=8", "--data.steps_per_epoch=2", "--data.num_val_prompts=6"),
        *("--data.val_prompts_per_batch=4", "--trainer.max_epochs=4", *QUIET),
    ]


@pytest.mark.parametrize("more", [(), ("--data.responses_per_step=7", "--trainer.max_steps=5")], ids=["whole", "cut"])
def test_a_run_of_sft_reads_what_was_foretold(capsys, tiny_model_dir, pairs_file, monkeypatch, more):
    flags = [*sft_flags(tiny_model_dir, pairs_file), *more]
    text, found = plan(capsys, *flags)
    read, item = [], ResponseSteps.__getitem__
    monkeypatch.setattr(ResponseSteps, "__getitem__", lambda self, step: read.append(item(self, step)) or read[-1])
    assert main(["fit", *flags, "--run_dir=run"]) == 0
    steps = torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert found["steps"]["total"] == steps
    trained = [batch for step in read[:steps] for batch in step]  # a loader may be a step ahead
    work = found["steps"]["work"]
    assert work["responses"]["all"] == sum(len(batch.inputs.input_ids) for batch in trained)
    came = {
        "tokens": sum(int(batch.inputs.attention_mask.sum()) for batch in trained),
        "response tokens": sum(len(batch.response_places) for batch in trained),
    }
    for name, number in came.items():
        share = 1e-9 if not more else 0.05  # of a part of an epoch it is the mean
        assert work[name]["all"] == pytest.approx(number, rel=share)
    assert max(batch.inputs.input_ids.numel() for batch in trained) <= found["memory"]["batch_tokens"]["training"]
    assert max(map(len, text.splitlines())) <= 80 and found["data"]["splits"]["seed"]["number"] > 0


def test_a_run_of_the_rl_stage_samples_what_was_foretold(capsys, ppo_flags, monkeypatch):
    text, found = plan(capsys, *ppo_flags)
    assert max(map(len, text.splitlines())) <= 80 and "1.0 passes over the prompts" in text
    sampled, sample = [], Generator.sample

    def watched(self, policy, role, prompts, uniform):
        rollout = sample(self, policy, role, prompts, uniform)
        sampled.append((prompts, int(rollout.response_mask.sum())))
        return rollout

    monkeypatch.setattr(Generator, "sample", watched)
    assert main(["fit", *ppo_flags, "--run_dir=run"]) == 0
    steps, work = found["steps"], found["steps"]["work"]
    assert steps["total"] == int(read_csv("run/steps.csv")[-1]["step"]) == 8
    trained = [(prompts, tokens) for prompts, tokens in sampled if len(prompts) == 16]
    assert sum(len(prompts) for prompts, _ in trained) == work["responses"]["all"] == 2 * work["prompts"]["all"]
    assert 0 < sum(tokens for _, tokens in trained) <= work["sampled tokens, at most"]["all"] == 8 * 16 * 5
    everyone = {tuple(ids) for prompts, _ in trained for ids in prompts}
    assert len(everyone) == found["data"]["splits"]["train"]["number"]
    assert sum(map(len, everyone)) == found["data"]["splits"]["train"]["total"]
    others = sum(len(prompts) for prompts, _ in sampled) - work["responses"]["all"]
    assert work["answers to held-out prompts"]["all"] == others == 6 * (2 + 4)
    assert steps["validations"] == 4
    optimizer_steps = torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert work["optimizer steps"]["all"] == optimizer_steps


def test_a_batch_of_held_out_prompts_is_no_larger_than_they_are_many(capsys, ppo_flags):
    more = ["--data.val_prompts_per_batch=1000", "--data.num_val_prompts=20"]
    found = plan(capsys, *ppo_flags, *more)[1]
    assert (
        found["data"]["splits"]["val"]["number"] == 16
    )  # more than the 16 responses of a step are not sampled at once
    longest = found["data"]["splits"]["train"]["high"] + 5
    assert found["memory"]["batch_tokens"]["sampling"] == 16 * longest


def test_a_reward_model_on_the_base_of_the_policy_adds_adapter_and_head(capsys, ppo_flags, tiny_fit, tiny_model_dir):
    tiny_fit("--model.backbone.train=lora", name="reward")
    shutil.copytree(tiny_model_dir, "model")
    lora = [*ppo_flags, "--model.backbone.train=lora", "--model.reward_model=reward"]
    _, shared = plan(capsys, *lora)
    saved = torch.load("reward/rounds/0/model.pt", weights_only=True)["weights"]
    assert shared["model"]["kinds"]["reward models"]["frozen"] == sum(p.numel() for p in saved.values())
    assert check(shared, "reward")["text"] == "reward: an adapter and a head on the policy's base"
    # Of a policy on another base, no weights of which are read.
    Path("model/model.safetensors").unlink()
    _, apart = plan(capsys, *lora, "--model.backbone.path=model")
    assert check(apart, "reward")["text"] == "reward: a model of its own"
    base = apart["model"]["kinds"]["base"]["frozen"]
    more = apart["model"]["kinds"]["reward models"]["frozen"] - shared["model"]["kinds"]["reward models"]["frozen"]
    assert 0 < more < base and apart["memory"]["all"]["training"] > shared["memory"]["all"]["training"]
    assert "a function, whose memory is not counted" in check(plan(capsys, *ppo_flags)[1], "reward")["text"]


WRONG_POLICIES = {
    "three at once": ["--data.sed_fraction=0.2", "--model.bakcbone.path=x", "--data.max_length=long"],
    "no model": ["--model.backbone.path=nowhere"],
    "no file": ["--data.path=pears.jsonl"],
    "no reward and no judge": ["--model.reward_model=nowhere/run", "--model.judge=my_rewards.nobody"],
    "an optimizer that refuses": ["--model.optimizer.init_args.weight_decay=-1"],
    "too many minibatches": ["--model.ppo.minibatches=50", "--model.kl_control.init_args.horizon=1"],
    "no room for a response": ["--model.sampling.max_new_tokens=500"],
    "no reloading": ["--trainer.reload_dataloaders_every_n_epochs=0"],
    "a head alone": ["--model.backbone.train=head"],
    "no test prompts": ["--data.test_fraction=0"],
}


@pytest.mark.parametrize(
    "more",
    often(
        WRONG_POLICIES,
        *("no model", "no reward and no judge", "too many minibatches", "no test prompts"),
    ),
)
def test_errors_are_those_of_a_fit_of_a_policy(capsys, ppo_flags, more):
    planned, fitted = (problems_of(capsys, command, *ppo_flags, *more) for command in ("plan", "fit"))
    assert planned == fitted and planned


def test_held_out_prompts_need_room_for_a_response_as_well(capsys, ppo_flags):
    row = {"prompt": "x" * 505, "chosen": "Yes.", "rejected": "No."}
    Path("long.jsonl").write_text(json.dumps(row) + "\n")
    more = ["--data.test_path=long.jsonl", "--data.max_length=600", "--data.max_prompt_length=600"]
    planned, fitted = (problems_of(capsys, command, *ppo_flags, *more) for command in ("plan", "fit"))
    assert planned == fitted and "sampling.max_new_tokens: got 5 after prompts of up to 5" in planned[0]


def test_problems_of_the_data_and_of_the_models_come_together(capsys, ppo_flags):
    wrong = ["--data.test_fraction=0", "--model.reward_model=nowhere/run"]
    found = problems_of(capsys, "plan", *ppo_flags, *wrong)
    assert "test: got no prompts to hold out" in found[0] and "reward nowhere/run: got no such folder" in found[1]
    sharded = main(["plan", *ppo_flags, "--trainer.strategy=fsdp"])
    said = capsys.readouterr()
    assert sharded == 2 and "Steps" in said.out and "got fsdp for a policy" in said.err


def test_token_figures_by_hand():
    tokens = count_tokens(np.array([[10, 20], [30, 40], [5, 5]]), np.array([5, 20, 0]))
    assert (tokens.pairs, tokens.median, tokens.total, tokens.shared) == (3, 30, 110, 25)
    assert tokens.high == 66  # 30 + 0.9 (70 - 30)
    assert tokens.prompt_share == 50 / 110 and tokens.saved_share == 25 / 110
    assert count_tokens(np.empty((0, 2), int), np.empty(0, int)).total == 0


def test_no_batch_is_larger_than_foretold(pairs_file, tiny_tokenizer):
    module = data(pairs_file, tokens_per_batch=150, tokens_per_scoring_batch=150)
    module.tokenizer = tiny_tokenizer
    module.prepare_data()
    module.setup()
    store, rows = module.data.store, module.data.rows("all")
    for layout in (PADDED, Layout(shares_prompts=True), Layout(shares_prompts=True, is_one_row=True, row_multiple=64)):
        for budget in (20, 150, 400):
            most = largest_batch(module.data.store, module.data.rows("all"), layout, budget)
            batches = layout.cut_pairs(store.num_tokens[rows], store.num_shared[rows], budget)
            for batch in batches:
                ids = [store.ids(row) for row in rows[batch].tolist()]
                keys = [*range(len(batch))] * 2
                inputs = layout.lay_out([a for a, _ in ids] + [b for _, b in ids], keys, 0)
                assert inputs.input_ids.numel() <= most
            assert most <= max(budget, 200) + 64


@pytest.mark.parametrize(
    ("config", "explicit"),
    [
        ("ppo.yaml", {"model.tokens_per_batch": 1536, "model.tokens_per_sampling_batch": 16384}),
        pytest.param("sft.yaml", {"data.tokens_per_batch": 1536}, marks=pytest.mark.slow),
    ],
)
def test_auto_budgets_of_a_policy_are_planned_as_a_fit_takes_them(config, explicit):
    """Those of a CPU are constants (docs/performance.md)."""
    more = ["--model.reward_model=builtins.len"] if config == "ppo.yaml" else []
    for name, settings in (("auto", dict.fromkeys(explicit, "auto")), ("numbers", explicit)):
        flags = [f"--{key}={value}" for key, value in settings.items()]
        assert main(["plan", "--config", config, *more, *flags, f"--json={name}.json"]) == 0
    plans = [json.loads(Path(f"{name}.json").read_text()) for name in ("auto", "numbers")]
    assert plans[0]["memory"] == plans[1]["memory"] and plans[0]["steps"] == plans[1]["steps"]


def test_the_sequences_and_tokens_of_a_pairwise_judge_are_those_that_fit_computes(
    tmp_path, capsys, tiny_run, tiny_fit, monkeypatch
):
    judge, cache = "--model.pairwise_judge=true", f"--data.cache_dir={tmp_path / 'cache'}"  # no other test's states
    text, found = plan(capsys, *tiny_run, judge)
    lengths = []

    def counted(body, inputs, readings):
        lengths.extend(inputs.num_tokens.tolist())
        return read_states(body, inputs, readings)

    monkeypatch.setattr(comparison_states, "read_states", counted)
    tiny_fit(judge, cache)
    foretold = found["rounds"]["pairwise_judge"]
    assert foretold == {"sequences": len(lengths), "tokens": sum(lengths)}
    assert foretold["sequences"] == 2 * found["data"]["splits"]["all"]["pairs"] == 160
    assert f"once: 160 sequences, some {sum(lengths):,} tokens." in " ".join(text.split())
    assert plan(capsys, *tiny_run)[1]["rounds"]["pairwise_judge"] is None


def test_the_seed_is_read_once_more_where_auto_chooses_for_a_trained_body(capsys, tiny_run, tiny_fit, monkeypatch):
    flags = ["--model.reading=auto", "--model.backbone.train=lora"]
    text, found = plan(capsys, *tiny_run, *flags)
    lengths = []

    def counted(trainer, reward_model, data, readings):
        pair_id, states = seed_states(trainer, reward_model, data, readings)
        lengths.extend(data.num_tokens(pair_id).flatten().tolist())
        return pair_id, states

    seed_states = reading_choice.seed_states
    monkeypatch.setattr(reading_choice, "seed_states", counted)
    tiny_fit(*flags, "--evolution.max_rounds=0")
    assert found["rounds"]["choice_tokens"] == sum(lengths) > 0
    assert f"Before them auto reads the seed once to choose where the head reads, {sum(lengths):,} tokens." in text
    for other in (["--model.reading=mean", flags[1]], [flags[0], "--model.backbone.train=head"]):
        assert plan(capsys, *tiny_run, *other)[1]["rounds"]["choice_tokens"] is None


def test_a_pairwise_judge_on_many_pairs_is_estimated_from_a_sample(capsys, tiny_run, monkeypatch):
    judge = ["--model.pairwise_judge=true", "--data.max_length=400"]  # room for all: no two are cut to one length
    exact = plan(capsys, *tiny_run, *judge)[1]["rounds"]["pairwise_judge"]
    monkeypatch.setattr(workload, "SAMPLE", 20)
    sampled = plan(capsys, *tiny_run, *judge)[1]["rounds"]["pairwise_judge"]
    assert sampled["sequences"] == exact["sequences"] and sampled["tokens"] != exact["tokens"]
    assert sampled["tokens"] == pytest.approx(exact["tokens"], rel=0.1)


@pytest.mark.parametrize("command", ["plan", "fit"])
def test_a_pairwise_judge_is_refused_where_nothing_would_use_it(tiny_run, capsys, command):
    judge, alone = "--model.pairwise_judge=true", [flag for flag in tiny_run if not flag.startswith("--evolution")]
    wrong = [judge, "--evolution.folds=0", "--evolution.rule=ser_lightning.TopShareRule"]
    assert main([command, *tiny_run, *wrong]) == 2
    assert "folds: got 0 with model.pairwise_judge" in capsys.readouterr().err
    assert main([command, *alone, judge, "--evolution=null"]) == 2
    assert capsys.readouterr().err.endswith(
        "error: model.pairwise_judge: got true with evolution null, without which no pool is labelled; leave out one "
        "of them\n"
    )
