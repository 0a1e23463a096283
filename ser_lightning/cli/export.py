"""`export`: a run's reward model or policy as an ordinary transformers folder."""

from pathlib import Path

from jsonargparse import Namespace

from ser_lightning.cli.commands import COMMANDS
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.export.policy import export_policy
from ser_lightning.export.reading_folder import CODE
from ser_lightning.export.reward import export, push, summary
from ser_lightning.runs.files import CONFIG, EXPORT
from ser_lightning.runs.policy_run import POLICY_MODULES, model_kind
from ser_lightning.runs.reward_run import read_reward_checkpoint
from ser_lightning.utils.terminal import say


def main(args: Namespace) -> None:
    """Run the command with its flags."""
    if (args.run is None) == (args.ckpt_path is None):
        got = "both RUN and --ckpt_path" if args.run else "nothing to export"
        raise UserError(f"export: got {got}; use `{COMMANDS['export'].usage}`")
    if args.private and not args.push:
        raise UserError("--private: got it without --push, which names the repository; leave it out")
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
    else:
        result = export(run, to, args.form, args.dtype, source, args.trust_remote_code)
        say(f"Exported to {to}. {summary(result)}")
        if (to / CODE).is_file():
            say(
                f"It is no plain classifier: score it with its {CODE}, or train a plain student, whose export is one:",
                f"  python -m ser_lightning fit --config {run}/{CONFIG} --config student.yaml --data.teacher {run} "
                "--run_dir NEW",
            )
    if args.push:
        say(f"Uploaded to {push(to, args.push, args.private)}")
