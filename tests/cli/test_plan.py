"""The plan of a run against the run itself, and the same errors as the run's."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import transformers

from ser_lightning.__main__ import main
from ser_lightning.data.layouts import PADDED, Layout
from ser_lightning.planning.workload import count_tokens, largest_batch
from ser_lightning.runs.files import RoundRow, write_rounds
from tests.helpers import data, problems_of, read_csv


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


@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
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


def test_a_cached_body_costs_every_pair_once(capsys, tiny_run):
    text, found = plan(capsys, *tiny_run, "--model.backbone.train=head", "--pairs_per_second=2")
    assert found["rounds"]["cached_tokens"] == found["data"]["splits"]["all"]["total"]
    assert found["rounds"]["rounds"][0]["seconds"] is None
    assert [work["tokens"] for work in found["rounds"]["rounds"]] == [[0, found["rounds"]["cached_tokens"]], [0, 0]]
    assert "computes every pair once" in text and found["model"]["all"]["trained"] == 16


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
    assert plan(capsys, *tiny_run, *head)[1]["rounds"]["cached_tokens"] is None
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
    "no reloading": ["--trainer.reload_dataloaders_every_n_epochs=0"],
    "shared prompts that are not exact": [
        *("--model.layout=shared_prompt", "--model.backbone.attn_implementation=flex_attention"),
    ],
}


@pytest.mark.parametrize("more", WRONG.values(), ids=WRONG)
def test_errors_are_those_of_fit(capsys, tiny_run, more):
    planned, fitted = (problems_of(capsys, command, *tiny_run, *more) for command in ("plan", "fit"))
    assert planned == fitted and planned


def test_what_is_known_to_be_wrong_is_said_after_the_tables(capsys, tiny_run):
    assert main(["plan", *tiny_run, "--trainer.strategy=deepspeed"]) == 2
    said = capsys.readouterr()
    assert "Checks" in said.out and "error: trainer.strategy: got deepspeed" in said.err
    assert main(["plan", *tiny_run, "--trainer.strategy=lightning.pytorch.strategies.FSDPStrategy"]) == 2
    assert "error: trainer.strategy: got FSDPStrategy" in capsys.readouterr().err


def test_other_runs_and_rates_without_a_source_are_refused(capsys, tiny_run):
    for config, kind in (("sft.yaml", "SFTModule"), ("ppo.yaml", "PPOModule")):
        found = problems_of(capsys, "plan", "--config", config)
        assert found == [f"plan: got {kind}; plan is for reward models, give rm.yaml"]
    assert "run: nowhere has no rounds.csv" in problems_of(capsys, "plan", *tiny_run, "--like=nowhere")[-1]
    assert "--pairs_per_second: got 0.0" in problems_of(capsys, "plan", *tiny_run, "--pairs_per_second=0")[-1]


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
