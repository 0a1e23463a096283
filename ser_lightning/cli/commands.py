"""Every command, and the flags of those that are not a run. Nothing here imports PyTorch."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ser_lightning.cli.arguments import Arguments, bundled_configs, split_arguments
from ser_lightning.cli.diagnosis import reason
from ser_lightning.errors import UserError, nearest, raise_problems
from ser_lightning.settings.check import unknown_keys
from ser_lightning.settings.overview import run_overview
from ser_lightning.utils.quiet import plain_warnings

PROGRAM = "python -m ser_lightning"
RUNS = {
    "fit": "train what the config names: a reward model (rm.yaml) or a policy (sft.yaml, ppo.yaml)",
    "validate": "metrics on the pairs that data.val_fraction holds out",
    "test": "metrics on the test pairs",
    "predict": "score pairs with a reward model, or sample responses of a policy (generate.yaml)",
}
"""Commands that take a config -> what `--help` says; Lightning runs them."""


def _optional(kind: Any, text: str) -> dict[str, Any]:
    return {"type": kind | None, "default": None, "help": text}


def _required(text: str) -> dict[str, Any]:
    return {"type": str, "required": True, "help": text}


def _switch(text: str) -> dict[str, Any]:
    return {"action": "store_true", "help": text}


_OVERWRITE = {"--overwrite": _switch("write over a file that is there")}
_TRUST = {"--trust_remote_code": _switch("run the Python files of the model")}
_JSON = {"--json": _optional(str, "file to write the figures to")} | _OVERWRITE
_MODEL = {"--model": _required("an export, a run folder or a transformers folder")}
_COLUMNS = {"--columns": _optional(dict[str, str], "how the file calls its columns: {prompt: question}")}
_LABELS = {"--labels": _optional(dict[str, str | None], "what its labels mean: {model_a: a, tie: tie}")}
_SCORING = {
    "--max_length": _optional(int, "most tokens of prompt and response (default: as in training)"),
    "--tokens_per_batch": {
        "type": int | Literal["auto"],
        "default": 16384,
        "help": "most tokens in a batch; halve to save memory; auto fills the free memory of a GPU",
    },
    "--device": {"type": Literal["auto", "cpu", "cuda"], "default": "auto", "help": "auto is CUDA where there is one"},
    "--dtype": {
        "type": Literal["auto", "float32", "bfloat16"],
        "default": "auto",
        "help": "of the body's weights; auto is as they were saved",
    },
}
_STRATEGY = {
    "type": str,
    "default": "Random",
    "help": "which pairs: Random, MostUncertain, or the dotted path of a class of your own",
}


@dataclass(frozen=True)
class Command:
    """A command that is not a run."""

    function: str
    """module:function below `ser_lightning` that takes the parsed flags, `plan` those of a run."""
    help: str
    usage: str
    flags: dict[str, dict[str, Any]] = field(default_factory=dict)


COMMANDS = {
    "export": Command(
        "cli.export:main",
        "write a run's model as a folder that needs only torch and transformers",
        "export RUN [--to FOLDER]`, `export --ckpt_path FILE --to FOLDER` or `export --answer MODEL --to FOLDER",
        {
            "run": {**_optional(str, "run folder of a fit: what it delivered"), "nargs": "?"},
            "--ckpt_path": _optional(str, "another checkpoint of a run"),
            "--answer": _optional(
                str, "a language model in place of a run: what it answers, Yes or No, as a reward that takes no label"
            ),
            "--to": _optional(str, "folder to write (default: RUN/export)"),
            "--form": {
                "type": Literal["merged", "adapter"],
                "default": "merged",
                "help": "adapter: only what was trained (adapter and head), with the name of its base model",
            },
            "--dtype": _optional(Literal["float32", "bfloat16", "float16"], "number format (default: as trained)"),
            "--push": _optional(str, "owner/name on the Hub to upload the folder to"),
            "--private": _switch("make a new repository on the Hub a private one"),
            **_TRUST,
        },
    ),
    "report": Command(
        "cli.report:main",
        "one page on a run, or on several side by side",
        "report RUN [RUN ...] [--to FILE]",
        {
            "runs": {"type": str, "nargs": "+", "help": "run folders; several reward models are compared"},
            "--to": _optional(str, "file to write (default: RUN/report.html; report.html for several)"),
            **_OVERWRITE,
        },
    ),
    "compare": Command(
        "cli.compare:main",
        "one reward model on labelled pairs, or two on the same ones, and a gate that a build can fail at; A and B are "
        "run folders, exports, or files that `score` wrote for the same data",
        "compare A [B] --data FILE",
        {
            "models": {"type": str, "nargs": "+", "help": "A and B; with --make_gate any number of baseline runs"},
            "--data": _required("file of labelled pairs"),
            "--unlabelled": _optional(
                str, "file of pairs drawn like those of --data, which narrow the intervals; its labels are not read"
            ),
            **_COLUMNS,
            **_LABELS,
            "--category": _optional(str, "column that holds a pair's category"),
            "--examples": _optional(int, "pairs to show that only one of both orders right (default: 3)"),
            "--gate": _optional(str, "YAML of thresholds; exit code 1 where one fails"),
            "--make_gate": _optional(str, "YAML to write, from the models as baselines"),
            "--sequential": _switch("stop scoring as soon as the decision is sure"),
            **_JSON,
            **_TRUST,
        },
    ),
    "bench": Command(
        "cli.bench:main",
        "RewardBench 1 and 2, and other files of prompts with chosen and rejected responses, scored by section",
        "bench --model FOLDER --data FILE",
        {
            **_MODEL,
            "--data": _required("file of rows with prompt, chosen and rejected"),
            **_COLUMNS,
            "--category": _optional(str, "column that holds a row's subset (default: subset, where there is one)"),
            "--weights": _optional(dict[str, float], "of subsets in their section: {math-prm: 447}"),
            **_JSON,
            **_SCORING,
            **_TRUST,
        },
    ),
    "score": Command(
        "cli.score:main",
        "rewards of the pairs or responses in a file, by any reward model, in the order of the file",
        "score --model FOLDER --data FILE --out FILE",
        {
            **_MODEL,
            "--data": _required("file of pairs or of single responses"),
            "--out": _required("file to write: .parquet, .csv or .jsonl"),
            **_OVERWRITE,
            **_COLUMNS,
            **_LABELS,
            **_SCORING,
            **_TRUST,
        },
    ),
    "query": Command(
        "cli.query:main",
        "the pool pairs that are worth a human label, as a file to annotate",
        "query --run RUN [--n N] [--to FILE]",
        {
            "--run": _required("run folder of a reward model"),
            "--n": {"type": int, "default": 100, "help": "how many pairs"},
            "--to": {"type": str, "default": "to_label.jsonl", "help": "file to write; never over another"},
            "--strategy": _STRATEGY,
        },
    ),
    "label": Command(
        "labelling.command:main",
        "a local page on which people label pairs by key, and their labels as a file for `fit`, Argilla or Label "
        "Studio",
        "label PAIRS` or `label --run RUN",
        {
            "pairs": {**_optional(str, "file of pairs; those without a label are asked for"), "nargs": "?"},
            "--run": _optional(str, "run folder of a reward model: asks for what `query` chooses from its pool"),
            "--n": _optional(int, "how many pairs to ask for (default: 100 of a run, all of a file)"),
            "--strategy": _STRATEGY,
            "--annotator": {"type": str, "default": "me", "help": "name of who labels; each has a file of labels"},
            "--to": _optional(str, "folder of the labels (default: RUN/labels, or beside the file)"),
            "--port": {"type": int, "default": 0, "help": "of the page, 0 = any that is free"},
            "--open": _switch("open the page in a browser"),
            "--agreement": _switch("show how far the annotators agree, and end"),
            "--export": _optional(str, "write pairs and labels to this file, and end"),
            "--form": {
                "type": Literal["training", "argilla", "label_studio"],
                "default": "training",
                "help": "of the exported file; training is what `fit` reads",
            },
            "--import": _optional(str, "take in the labels of a JSON file of Argilla or Label Studio, and end"),
            **_OVERWRITE,
            **_COLUMNS,
            **_LABELS,
        },
    ),
    "serve": Command(
        "cli.serve:main",
        "a reward model behind HTTP, for trainers (OpenRLHF, verl, TRL) and rerankers in other processes",
        "serve MODEL [--port PORT]",
        {
            "model": {"type": str, "help": "an export, a run folder or a transformers folder"},
            "--host": {
                "type": str,
                "default": "127.0.0.1",
                "help": "address to listen on; others than this machine's warn",
            },
            "--port": {"type": int, "default": 8000, "help": "port to listen on; 0 takes a free one"},
            "--policy": _optional(str, "folder of the policy whose chat template writes what OpenRLHF sends"),
            "--max_rows": {"type": int, "default": 1024, "help": "most responses in a request"},
            "--max_body_mib": {"type": int, "default": 8, "help": "most MiB in a request"},
            "--max_wait_ms": {
                "type": float,
                "default": 5.0,
                "help": "how long a request waits for others to share a batch with",
            },
            **_SCORING,
            **_TRUST,
        },
    ),
    "plan": Command(
        "cli.plan:main",
        "what a fit of a reward model or a policy will take: weights, memory, tokens, steps, time; takes the flags of "
        "`fit` as well",
        "plan --config rm.yaml|sft.yaml|ppo.yaml [--config OVERLAY ...] [--key value ...]",
        {
            **_JSON,
            "--like": _optional(str, "run folder of a reward model whose rounds say how fast this machine is"),
            "--pairs_per_second": _optional(float, "how fast a reward model trains on pairs and scores them"),
        },
    ),
}


def run_command(name: str, argv: list[str]) -> int:
    """Run one of `COMMANDS` and return its exit code.

    Raises:
        UserError: a line for each problem of the command line, before anything heavy is imported.
    """
    is_run = name == "plan" and not {"--help", "-h"} & {*argv}
    args = _run_arguments(name, argv) if is_run else parse(name, argv)
    module, _, function = COMMANDS[name].function.partition(":")
    run = getattr(import_module(f"ser_lightning.{module}"), function)
    plain_warnings()
    return run(args) or 0


def _run_arguments(name: str, argv: list[str]) -> Arguments:
    """The arguments of a command that takes those of `fit` beside its own flags."""
    arguments = split_arguments(["fit", *argv])
    of_fit = [flag for flag in arguments.flags if flag[0].partition("=")[0] not in COMMANDS[name].flags]
    raise_problems(unknown_keys(arguments.read_configs(), of_fit))
    return arguments


def parse(name: str, argv: list[str]) -> Namespace:
    """The flags of a command; `UserError` with all that is wrong with them."""
    command = COMMANDS[name]
    parser = ArgumentParser(
        prog=f"{PROGRAM} {name}",
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    add_flags(parser, command.flags)
    if not {"--help", "-h"} & {*argv}:
        raise_problems(_flag_problems(name, argv))
    try:
        return parser.parse_args(argv)
    except ArgumentError as error:
        raise UserError(_parse_problem(name, argv, str(error))) from error


def add_flags(parser: ArgumentParser, flags: dict[str, dict[str, Any]]) -> None:
    """Add the flags of a command to a parser."""
    for flag, settings in flags.items():
        parser.add_argument(flag, **settings)


def _flag_problems(name: str, argv: list[str]) -> Iterable[str]:
    """Flags that do not exist, and flags that are missing."""
    flags = COMMANDS[name].flags
    given = [word.partition("=")[0] for word in argv if word.startswith("--") and word != "--"]
    unknown = [flag for flag in given if flag.partition(".")[0] not in flags]
    for flag in unknown:
        hint = nearest(flag, flags) or f"; it takes {', '.join(f for f in flags if f.startswith('--'))}"
        yield f"{name}: got the unknown flag {flag}{hint}"
    missing = [flag for flag, settings in flags.items() if settings.get("required") and flag not in given]
    if missing and not unknown:
        yield f"{name}: got no {' and no '.join(missing)}; use `{COMMANDS[name].usage}`"


def _parse_problem(name: str, argv: list[str], error: str) -> str:
    """One line for what the parser says of a value."""
    place = error.partition("\n")[0]
    if '"' not in place:
        return f"{name}: {' '.join(error.split())}; use `{COMMANDS[name].usage}`"
    flag = f"--{place.split(chr(34))[1]}"
    return f"{flag}: got {split_arguments([name, *argv]).value(flag)!r}; {reason(error)}"


def check_command(name: str) -> None:
    """`UserError` where there is no such command."""
    known = [*RUNS, *COMMANDS]
    if name not in known:
        raise UserError(f"command: got {name!r}; give one of {', '.join(known)}{nearest(name, known)}")


def run_help(arguments: Arguments) -> str:
    """What `--help` says of a command that takes a config."""
    return run_overview(
        PROGRAM, arguments.command, RUNS[arguments.command], arguments.read_configs(), bundled_configs()
    )


def overview() -> str:
    """What `--help` says."""
    lines = [f"usage: {PROGRAM} COMMAND [--flag value ...]", ""]
    lines += ["Self-Evolved Reward learning: train a reward model from few human labels.", ""]
    for name, text in {**RUNS, **{name: command.help for name, command in COMMANDS.items()}}.items():
        lines += textwrap.wrap(text, 80, initial_indent=f"  {name:10}", subsequent_indent=" " * 12)
    lines += ["", f"{PROGRAM} COMMAND --help shows the flags of a command, --version the version; with --debug every"]
    lines += ["error keeps its traceback. A first run: fit --config rm.yaml"]
    return "\n".join(lines)
