"""`export`: a run's reward model or policy as an ordinary transformers folder."""

import shlex
from pathlib import Path

from jsonargparse import Namespace

from ser_lightning.cli.commands import COMMANDS
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.export.answer import export_answer
from ser_lightning.export.policy import export_policy
from ser_lightning.export.reading_folder import CODE
from ser_lightning.export.reward import export, push, summary
from ser_lightning.runs.files import CONFIG, EXPORT
from ser_lightning.runs.policy_run import POLICY_MODULES, model_kind
from ser_lightning.runs.reward_run import read_reward_checkpoint
from ser_lightning.utils.terminal import say


def main(args: Namespace) -> None:
    """Run the command with its flags."""
    given = [name for name in ("RUN", "--ckpt_path", "--answer") if args[name.lower().strip("-")] is not None]
    if len(given) != 1:
        got = " and ".join(given) or "nothing to export"
        raise UserError(f"export: got {got}; use `{COMMANDS['export'].usage}`")
    if args.private and not args.push:
        raise UserError("--private: got it without --push, which names the repository; leave it out")
    to = _export_answer(args) if args.answer is not None else _export_run(args)
    if args.push:
        say(f"Uploaded to {push(to, args.push, args.private)}")


def _export_run(args: Namespace) -> Path:
    """A run's model, or that of one of its checkpoints."""
    if args.ckpt_path is not None:
        run, source = read_reward_checkpoint(Path(args.ckpt_path), args.trust_remote_code)
    else:
        run, source = Path(args.run), None
    to = Path(args.to) if args.to else run / EXPORT
    if model_kind(run) in POLICY_MODULES:
        changed = [f"--{name}" for name, usual in (("form", "merged"), ("dtype", None)) if args[name] != usual]
        raise_problems(f"{flag}: got a policy, which is merged at its own precision; leave it out" for flag in changed)
        largest = export_policy(run, to, args.trust_remote_code)
        say(f"Exported to {to}; its logits differ from the trained model's by at most {largest:.1e}.")
        return to
    result = export(run, to, args.form, args.dtype, source, args.trust_remote_code)
    say(f"Exported to {to}. {summary(result)}")
    if (to / CODE).is_file():
        config, teacher = shlex.quote(f"{run}/{CONFIG}"), shlex.quote(str(run))
        say(
            f"It is no plain classifier: score it with its {CODE}, or train a plain student, whose export is one:",
            f"  python -m ser_lightning fit --config {config} --config student.yaml --data.teacher {teacher} "
            "--run_dir NEW",
        )
    return to


def _export_answer(args: Namespace) -> Path:
    """A language model's own answer."""
    problems = ["--to: got none with --answer, which has no run folder; name a folder"] if args.to is None else []
    if args.form != "merged":
        problems.append(f"--form: got {args.form} with --answer, which is a whole model; leave it out")
    raise_problems(problems)
    to = Path(args.to)
    result = export_answer(args.answer, to, args.dtype or "float32", trust_remote_code=args.trust_remote_code)
    say(f"Exported to {to}. {summary(result)}")
    say(
        "No label has trained it. To hold a run against it on the same pairs:",
        f"  python -m ser_lightning compare {shlex.quote(str(to))} RUN --data FILE",
    )
    return to
