"""`report`: a run as one page, or several runs side by side."""

from pathlib import Path

from jsonargparse import Namespace

from ser_lightning.errors import raise_problems
from ser_lightning.report.page import write_report
from ser_lightning.runs.files import PAGE
from ser_lightning.utils.atomic import output_problems
from ser_lightning.utils.terminal import say


def main(args: Namespace) -> None:
    """Run the command with its flags."""
    runs = [Path(run) for run in args.runs]
    to = Path(args.to) if args.to else (runs[0] if len(runs) == 1 else Path()) / PAGE
    if to.resolve() not in [(run / PAGE).resolve() for run in runs]:
        raise_problems(output_problems("--to" if args.to else "the page of several runs", to, runs, args.overwrite))
    say(f"Report: {write_report(runs, to)}")
