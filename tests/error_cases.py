"""What users get wrong, and the line that they get for it. `python -m tests.error_cases` writes `docs/errors.md`."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ser_lightning.data.formats import parse_row
from tests.policy_runs import QUIET

DISK_IS_FULL = "disk: got no room (No space left on device); free some, then resume with --ckpt_path last"
PAGE = Path(__file__).parent.parent / "docs" / "errors.md"
HEAD = """# Error messages

An error that the user can fix is one line on standard error, `error: WHAT: got VALUE; HOW TO FIX IT`, with exit code 2.
All problems of a command line and its configs are reported at once. This page is generated from the tests
(`python -m tests.error_cases`), which provoke each error.

| problem | message |
|---|---|
"""
TAIL = """
A tokenizer without a pad token is not an error: it uses an unused special token, or its EOS where that ends no
conversation.

A rule that keeps nothing is not an error: the run ends with the model of that round, and the log says
`Round 0: target 0.990 keeps nothing: the highest that any pair reaches is 0.518.`
"""


class Scene:
    """A folder with `pairs.jsonl` (80 good pairs) and `model/` (a tiny model), in which a mistake is made.

    Attributes:
        flags: of a run on both.
        fitted: a run with these flags, which nobody may change.
    """

    def __init__(self, rows: list[dict], flags: list[str], fitted: Path) -> None:
        self.rows, self.flags, self.fitted = rows, flags, fitted

    def write(self, rows: list[dict] | bytes, name: str = "pairs.jsonl") -> list[str]:
        """Replace the pairs."""
        text = rows if isinstance(rows, bytes) else b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        Path(name).write_bytes(text)
        return []

    def edit_model(self, name: str, change: Callable[[dict], object]) -> list[str]:
        """Change a JSON file of the model."""
        path = Path("model", name)
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return []


@dataclass(frozen=True)
class Case:
    """A mistake: `make` makes it and returns the flags that go with it."""

    title: str
    line: str
    """`...` stands for what other packages say."""
    make: Callable[[Scene], list[str]]
    config: str = "rm.yaml"

    def command(self, scene: Scene) -> list[str]:
        """Make the mistake, and give the command line that meets it."""
        flags = self.make(scene)
        if self.config == "rm.yaml":
            return ["fit", *scene.flags, *flags]
        command = "predict" if self.config == "generate.yaml" else "fit"
        own = REWARD if self.config == "ppo.yaml" else ()
        return [command, "--config", self.config, *POLICY, *own, *QUIET, *flags]


POLICY = (
    *("--model.backbone.path=model", "--model.backbone.train=full"),
    *("--data.path=pairs.jsonl", "--data.max_length=64", "--data.seed_fraction=0.3"),
)
REWARD = ("--model.reward_model=tests.error_cases.brevity", "--model.judge=null", "--model.sampling.max_new_tokens=4")


def brevity(prompts: list, responses: list[str]) -> list[float]:
    """A reward."""
    return [-len(response) for response in responses]


def not_a_number(prompts: list, responses: list[str]) -> list[float]:
    """No reward."""
    return [float("nan")] * len(responses)


def _trained(kind: str, train: str, has_checkpoint: bool = True) -> Callable[[Scene], list[str]]:
    """A run as far as it is read before its weights are."""

    def make(scene: Scene) -> list[str]:
        folder = Path("old/checkpoints")
        folder.mkdir(parents=True)
        lora = {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}
        init_args = {"backbone": {"path": "model", "train": train, "lora": lora}}
        model = {"class_path": f"ser_lightning.{kind}", "init_args": init_args}
        Path("old/config.yaml").write_text(json.dumps({"model": model}))
        if has_checkpoint:
            torch.save({"state_dict": {}}, folder / "last.ckpt")
        return ["--model.backbone.path=old"]

    return make


def _turned(rows: list[dict]) -> list[dict]:
    return [{"prompt": r["prompt"], "response_a": r["chosen"], "response_b": r["rejected"], "label": 1} for r in rows]


def _no_pad_no_eos(scene: Scene) -> list[str]:
    def strip(config: dict) -> None:
        for name in ("pad_token", "eos_token"):
            config.pop(name, None)

    return scene.edit_model("tokenizer_config.json", strip)


def _no_tokenizer(scene: Scene) -> list[str]:
    shutil.rmtree("model")
    AutoConfig.for_model("bert").save_pretrained("model")
    return []


def _template(text: str) -> Callable[[Scene], list[str]]:
    def make(scene: Scene) -> list[str]:
        Path("own.jinja").write_text(text)
        return ["--model.backbone.template=own.jinja"]

    return make


def _small_model(scene: Scene) -> list[str]:
    config = AutoConfig.from_pretrained("model")
    config.vocab_size = 100
    AutoModelForCausalLM.from_config(config).save_pretrained("model")
    return []


def _huge_weights(scene: Scene) -> list[str]:
    model = AutoModelForCausalLM.from_pretrained("model")
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("inf"))
    model.save_pretrained("model")
    return []


def _damaged(scene: Scene) -> list[str]:
    folder = Path("run/checkpoints")
    folder.mkdir(parents=True)
    Path("run/config.yaml").write_text("{}")
    (folder / "last.ckpt").write_bytes(b"half of it")
    torch.save({}, folder / "previous.ckpt")
    return ["--run_dir=run", "--ckpt_path=last"]


def _other_config(scene: Scene) -> list[str]:
    shutil.copytree(scene.fitted, "run")
    return ["--run_dir=run", "--ckpt_path=last", "--data.max_length=48"]


def _other_splits(scene: Scene) -> list[str]:
    shutil.copytree(scene.fitted, "run")
    return ["--data.teacher=run", "--data.split_seed=1", "--run_dir=student"]


def _unfinished_teacher(scene: Scene) -> list[str]:
    shutil.copytree(scene.fitted, "run")
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    saved["callbacks"]["EvolutionCallback"]["finished"] = False
    torch.save(saved, "run/checkpoints/last.ckpt")
    return ["--data.teacher=run", "--run_dir=student"]


def _taken(scene: Scene) -> list[str]:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("{}")
    Path("run/rounds.csv").write_text("round\n0\n")
    return ["--run_dir=run"]


def _copy_of_test(scene: Scene) -> list[str]:
    shutil.copy("pairs.jsonl", "test.jsonl")
    return ["--data.test_path=test.jsonl"]


CASES = [
    Case(
        "a column is missing",
        "pairs.jsonl, line 1: got the columns prompt, chosen; needs chosen and rejected, or response_a and response_b: "
        "name them with columns: {chosen: ..., rejected: ...}",
        lambda s: s.write([{k: v for k, v in s.rows[0].items() if k != "rejected"}, *s.rows[1:]]),
    ),
    Case(
        "columns that the file lacks",
        "columns: got {chosen: better}; the file has prompt, chosen, rejected",
        lambda _: ["--data.columns={chosen: better}"],
    ),
    Case(
        "the same mistake in many rows",
        "pairs.jsonl, line 1: got the columns prompt, chosen; needs chosen and rejected, or response_a and response_b: "
        "name them with columns: {chosen: ..., rejected: ...} (79 more like this)",
        lambda s: s.write([{k: v for k, v in row.items() if k != "rejected"} for row in s.rows]),
    ),
    Case(
        "broken JSON",
        "pairs.jsonl, line 3: got broken JSON (Expecting ',' delimiter: line 1 column 16 (char 15)); "
        "mend it or remove it",
        lambda s: s.write("".join(json.dumps(r) + "\n" for r in s.rows[:2]).encode() + b'{"prompt": "x" "y"}\n'),
    ),
    Case("an empty file", "pairs.jsonl: got no row; give a file with at least one pair", lambda s: s.write(b"")),
    Case(
        "not UTF-8",
        "pairs.jsonl: got bytes that are not UTF-8 after pairs.jsonl; convert the file to UTF-8",
        lambda s: s.write(b'{"prompt": "caf\xe9", "chosen": "a", "rejected": "b"}\n'),
    ),
    Case(
        "a label outside of the classes",
        "pairs.jsonl, line 2: got the label 7; use 1 or 'a' (response_a is better), 0 or 'b', 0.5 or 'tie', or nothing "
        "(unlabelled), or say what it means: data.labels: {7: a}",
        lambda s: s.write([_turned(s.rows)[0], {**_turned(s.rows)[1], "label": 7}]),
    ),
    Case(
        "scores that contradict the label",
        "pairs.jsonl, line 1: got s1 1 and s2 2, which contradict label; correct one of them, or leave score_a and "
        "score_b out of columns",
        lambda s: [
            *s.write([{**_turned(s.rows)[0], "s1": 1, "s2": 2}, *_turned(s.rows)[1:]]),
            "--data.columns={score_a: s1, score_b: s2}",
        ],
    ),
    Case(
        "a pattern that no file matches",
        "pears*.jsonl: got a pattern that no file matches; did you mean pairs.jsonl?",
        lambda _: ["--data.path=pears*.jsonl"],
    ),
    Case(
        "a file that is not there",
        "pears.jsonl: got no such file; did you mean pairs.jsonl?",
        lambda _: ["--data.path=pears.jsonl"],
    ),
    Case(
        "a pool of nothing",
        "data: got a pool of no pairs; lower seed_fraction, give pool_path, or set max_rounds to 0",
        lambda _: ["--data.seed_fraction=1.0"],
    ),
    Case(
        "a seed of three pairs",
        "seed: got 3 labelled pairs to train on, need at least 8; raise data.seed_fraction or give more "
        "pairs with a label",
        lambda _: ["--data.seed_fraction=0.05"],
    ),
    Case(
        "a seed of one class",
        "seed: got 30 pairs in all of which response a is better, by chance 1 time in 536,870,912; check the "
        "labels, or give more pairs",
        lambda s: [*s.write(_one_class(s.rows)), "--data.test_fraction=0", "--data.pool_path=pool.jsonl"],
    ),
    Case(
        "all pairs are in the test set as well",
        "seed: got 0 labelled pairs to train on, need at least 8; give a data.test_path of other dialogues: it has "
        "those of 80 pairs of data.path",
        _copy_of_test,
    ),
    Case(
        "a model that does not exist",
        "backbone.path: got modle; there is no such folder, no tokenizer of that name was downloaded before, and the "
        "Hub cannot be reached (or HF_HUB_OFFLINE is set); give a folder that holds the model (fit: "
        "--model.backbone.path FOLDER)",
        lambda _: ["--model.backbone.path=modle"],
    ),
    Case(
        "a model folder that does not exist",
        "backbone.path: got ./modle; there is no such folder; give a transformers folder or a Hub name",
        lambda _: ["--model.backbone.path=./modle"],
    ),
    Case(
        "a tokenizer without pad and EOS",
        "backbone.path: got a tokenizer without EOS and pad (model); add them to it",
        _no_pad_no_eos,
    ),
    Case(
        "a vocabulary larger than the model's",
        "backbone.path: got a tokenizer of 259 tokens for 100 embeddings; use its own",
        _small_model,
    ),
    Case(
        "a model folder without its tokenizer",
        "tokenizer: got 5 tokens, none of which is text, from model; put the tokenizer.json and the "
        "tokenizer_config.json of the model into its folder",
        _no_tokenizer,
    ),
    Case(
        "more tokens than the model has positions",
        "data.max_length: got 513 for a model of 512 positions; use at most that",
        lambda _: ["--data.max_length=513"],
    ),
    Case(
        "adapters on layers that the model lacks",
        "backbone.lora.target_modules: got query_key_value, which no layer that can have an adapter is called; "
        "there are down_proj, embed_tokens, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj; use some of them, or "
        "all-linear",
        lambda _: ["--model.backbone.train=lora", "--model.backbone.lora.target_modules=[query_key_value]"],
    ),
    Case(
        "a chat template that raises",
        "chat template refuses a conversation: got division by zero; use turns that the template takes, or another "
        "template",
        _template("{{ 1 / 0 }}"),
    ),
    Case(
        "a generation prompt that no trained turn begins with",
        r"backbone.template: got a generation prompt that ends in '<think>\n', with which no turn of a conversation "
        "begins, so that SFT would train another place than sampling begins at; use a template without it (a copy in a "
        "file)",
        _template(
            "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}<think>\n{% endif %}"
        ),
        "sft.yaml",
    ),
    Case(
        "a loss that is not finite",
        "train/loss: got nan, gradient norm nan, epoch 0, step 0; lower model.optimizer.init_args.lr, or look for the "
        "cause with --config debug/anomaly.yaml",
        _huge_weights,
    ),
    Case(
        "more folds than the seed has dialogues",
        "folds: got 30 of a seed with 19 dialogues; use fewer folds or a larger seed",
        lambda _: ["--evolution.folds=30"],
    ),
    Case(
        "a rule that needs folds, without them",
        "evolution.folds: got 0 with CalibratedRule, which calibrates on them; set 2 or more",
        lambda _: ["--evolution.folds=0"],
    ),
    Case(
        "an unknown key",
        "data.sed_fraction (command line): unknown key, got '0.2'; did you mean data.seed_fraction?",
        lambda _: ["--data.sed_fraction=0.2"],
    ),
    Case(
        "a setting that other trainers call otherwise",
        "model.lr (command line): unknown key, got '1e-4'; did you mean model.optimizer.lr?",
        lambda _: ["--model.lr=1e-4"],
    ),
    Case(
        "a batch size",
        "data.batch_size (command line): unknown key, got '8'; did you mean data.pairs_per_step?",
        lambda _: ["--data.batch_size=8"],
    ),
    Case(
        "gradients that are accumulated by Lightning",
        "trainer.accumulate_grad_batches: got 4; leave it out and lower data.tokens_per_batch, which splits a step "
        "without changing it",
        lambda _: ["--trainer.accumulate_grad_batches=4"],
    ),
    Case(
        "gradients that are clipped by Lightning",
        "trainer.gradient_clip_val: got 1.0; leave it out and set model.max_grad_norm",
        lambda _: ["--trainer.gradient_clip_val=1.0"],
    ),
    *(
        Case(
            f"a precision of {precision}",
            f"trainer.precision: got {precision}; give 32-true, bf16-mixed, or model.backbone.dtype",
            lambda _, precision=precision: [f"--trainer.precision={precision}"],
        )
        for precision in ("bf16-true", "16-true", "64-true", "16-mixed")
    ),
    Case(
        "no number of devices",
        "trainer: `devices` selected with `CPUAccelerator` should be an int > 0.",
        lambda _: ["--trainer.devices=-1"],
    ),
    Case(
        "a random seed below 0",
        "seed_everything: got -1; give a number from 0 to 4294967295",
        lambda _: ["--seed_everything=-1"],
    ),
    Case(
        "a class that does not exist",
        "evolution.rule (command line): got 'ser_lightning.TopShareRul'; unknown class; did you mean "
        "ser_lightning.TopShareRule?",
        lambda _: ["--evolution.rule=ser_lightning.TopShareRul"],
    ),
    Case(
        "a class of a package that does not exist",
        "evolution.rule (command line): got 'my_rules.Mine'; unknown class; give its dotted path, and check that "
        "PYTHONPATH has its package",
        lambda _: ["--evolution.rule=my_rules.Mine"],
    ),
    Case(
        "a word for a number",
        "model.optimizer.lr (command line): got 'fast'; give a number",
        lambda _: ["--model.optimizer.lr=fast"],
    ),
    Case(
        "a value of the wrong type",
        "data.max_length (command line): got 'long'; give an integer",
        lambda _: ["--data.max_length=long"],
    ),
    Case(
        "null where a value is needed",
        "model.center_rewards_coefficient: got null; give a number",
        lambda _: ["--model.center_rewards_coefficient=null"],
    ),
    Case(
        "arguments that the optimiser refuses",
        "model.optimizer: got arguments that it refuses (Invalid weight_decay value: -1.0); mend its init_args",
        lambda _: ["--model.optimizer.init_args.weight_decay=-1.0"],
    ),
    Case(
        "a folder that holds a run",
        "--run_dir: got run, which holds a run; go on with --ckpt_path last or name another folder",
        _taken,
    ),
    Case(
        "a run folder that belongs to another config",
        "run folder run: its config differs: data.init_args.max_length was 64 and is 48; resume without --config to "
        "use run/config.yaml, or start another run with another --run_dir",
        _other_config,
    ),
    Case(
        "nothing to resume",
        "--ckpt_path: got last, but there is no run/checkpoints/last.ckpt; auto starts anew where there is nothing to "
        "resume",
        lambda _: ["--run_dir=run", "--ckpt_path=last"],
    ),
    Case(
        "a damaged checkpoint",
        "--ckpt_path: got run/checkpoints/last.ckpt, which is damaged (cut off or not a checkpoint); go on from the "
        "newest good one with --ckpt_path run/checkpoints/previous.ckpt",
        _damaged,
    ),
    Case(
        "a teacher of other splits",
        "data.teacher: got run, which has other splits or seed labels: split_seed was 0 and is 1; give the data of "
        "run/config.yaml, or a teacher of this data",
        _other_splits,
    ),
    Case(
        "a teacher that is not finished",
        "data.teacher: got run, whose evolution is not finished; resume it with --run_dir run --ckpt_path last",
        _unfinished_teacher,
    ),
    Case(
        "a policy from a run that trained none",
        "backbone.path: got old, a run of RewardModule; give a run of sft.yaml or ppo.yaml, or a model",
        _trained("reward_module.RewardModule", "full"),
        "sft.yaml",
    ),
    Case(
        "a policy from a run without a checkpoint",
        "backbone.path: got old, which has no checkpoints/last.ckpt; let its fit finish an epoch first",
        _trained("sft_module.SFTModule", "full", has_checkpoint=False),
        "ppo.yaml",
    ),
    Case(
        "a policy that was trained in another way",
        "backbone.train: got full for old, which was trained with lora; use that, or `export old` and give "
        "backbone.path the folder that it writes",
        _trained("sft_module.SFTModule", "lora"),
        "ppo.yaml",
    ),
    Case(
        "a policy with adapters of another rank",
        "backbone.lora.r: got 8 for old, which was trained with 16; use that, or `export old` and start from the "
        "folder that it writes",
        lambda s: [*_trained("ppo_module.PPOModule", "lora")(s), "--model.backbone.train=lora"],
        "generate.yaml",
    ),
    Case(
        "a policy of which the head alone is trained",
        "backbone.train: got head, which trains no policy; use lora or full",
        lambda _: ["--model.backbone.train=head"],
        "sft.yaml",
    ),
    Case(
        "a reward that is neither a folder nor a function",
        "reward runs/RM: got no such folder; give the run folder of a fit, a transformers folder with a classifier of "
        "one label, or the dotted path of a function (prompts, responses) -> scores, such as my_module.my_function",
        lambda _: ["--model.reward_model=runs/RM"],
        "ppo.yaml",
    ),
    Case(
        "a reward that is no number",
        "reward tests.error_cases.not_a_number: got NaN for 16 of 16 responses, such as response 0 (...); every "
        "response needs a finite number",
        lambda _: ["--model.reward_model=tests.error_cases.not_a_number"],
        "ppo.yaml",
    ),
    Case(
        "a group of one response",
        "model.responses_per_prompt: got 1 for rloo, whose baseline is the other responses to a prompt; use at least "
        "2, 4 is usual",
        lambda _: ["--model.advantage=rloo"],
        "ppo.yaml",
    ),
    Case(
        "no prompts to hold out",
        "test: got no prompts to hold out; set data.test_path or data.test_fraction",
        lambda _: ["--data.test_fraction=0.0"],
        "ppo.yaml",
    ),
    Case(
        "a stop token that is several",
        "sampling.stop: got 'Question', which is 8 tokens; name single tokens",
        lambda _: ["--model.sampling.stop=[Question]"],
        "ppo.yaml",
    ),
    Case(
        "responses without a pair",
        "model.responses_per_prompt: got 1; a pair needs at least 2",
        lambda _: ["--model.responses_per_prompt=1"],
        "generate.yaml",
    ),
    Case(
        "a policy that always says the same",
        "pool: got no pair from 64 prompts, all responses to a prompt being the same or empty; raise "
        "model.sampling.temperature or model.responses_per_prompt",
        lambda _: ["--model.sampling.temperature=1.0e-6", "--model.sampling.max_new_tokens=2"],
        "generate.yaml",
    ),
]


def _one_class(rows: list[dict]) -> list[dict]:
    """Labels that all say a, in the order that the project gives a and b; the rest becomes a pool."""
    pairs = [parse_row(row, {}, "") for row in rows]
    named = [{"prompt": p.prompt, "response_a": p.response_a, "response_b": p.response_b} for p in pairs]
    Path("pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named[30:]))
    return [{**row, "label": 1} for row in named[:30]]


def page() -> str:
    """`docs/errors.md`."""
    lines = [f"| {case.title} | `{case.line.replace('|', '&#124;')}` |" for case in CASES]
    return HEAD + "\n".join([*lines, f"| the disk is full | `{DISK_IS_FULL}` |"]) + "\n" + TAIL


if __name__ == "__main__":
    PAGE.write_text(page())
