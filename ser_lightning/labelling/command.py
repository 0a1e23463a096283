"""`label`: a page on which people label pairs, and what is done with their labels."""

import contextlib
import json
import logging
import secrets
import shlex
import webbrowser
from collections.abc import Callable, Iterable
from pathlib import Path

from jsonargparse import Namespace

from ser_lightning.data.labels import check_labels
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.evolution.query import load_strategy
from ser_lightning.inference.scoring_rows import column_problems
from ser_lightning.labelling.agreement import print_agreement
from ser_lightning.labelling.exchange import (
    LABEL_STUDIO_CONFIG,
    argilla_records,
    dump,
    label_studio_tasks,
    read_foreign,
)
from ser_lightning.labelling.label_file import (
    HumanLabel,
    LabelFile,
    check_name,
    labels_of_run,
    latest,
    misplaced,
    read_labels,
)
from ser_lightning.labelling.merge import MergeCounts, training_rows, verdicts
from ser_lightning.labelling.pairs import PairFile
from ser_lightning.labelling.session import Session
from ser_lightning.records import PreferencePair
from ser_lightning.runs.pool import files_of_run, read_pool
from ser_lightning.utils.atomic import (
    json_lines_problems,
    output_problems,
    write_lines_atomically,
    write_text_atomically,
)
from ser_lightning.utils.terminal import say

NUM_OF_RUN = 100
"""Pairs that are asked for of a run, unless `--n` says otherwise."""
_OF_PAGE = {"n": None, "strategy": "Random", "annotator": "me", "port": 0, "open": False}
"""Flags that only the page reads -> their defaults, as `cli/commands.py` has them."""


def main(args: Namespace) -> None:
    """Run the command with its flags."""
    raise_problems(_problems(args))
    check_name(args.annotator)
    folder = _folder(args)
    if args.agreement:
        print_agreement(_labels_in(folder))
    elif args.export:
        export(args, folder)
    elif args["import"]:
        import_labels(args, folder)
    else:
        label(args, folder)


def _problems(args: Namespace) -> Iterable[str]:
    if (args.pairs is None) == (args.run is None):
        got = "neither" if args.pairs is None else "both"
        yield f"label: got {got} of a file of pairs and --run; give one of them"
    if args.n is not None and args.n < 1:
        yield f"--n: got {args.n}; use at least 1"
    if len(does := [flag for flag in ("agreement", "export", "import") if args[flag]]) > 1:
        yield f"label: got --{' and --'.join(does)}; give one at a time"
    unread = [flag for flag, usual in _OF_PAGE.items() if args[flag] != usual]
    if does and unread:
        yield f"--{does[0]}: got it with --{' and --'.join(unread)}, which the page alone uses; leave one side out"
    elif args.strategy != _OF_PAGE["strategy"] and args.run is None:
        yield f"--strategy: got {args.strategy} without --run, from whose pool it chooses; leave it out"
    if args.form != "training" and not args.export:
        yield f"--form: got {args.form} without --export, whose file it is of; give both"
    if args.run and (args.columns or args.labels):
        yield "label: got --columns or --labels with --run, whose config has them; leave them out"
    yield from [*column_problems(args.columns or {}), *check_labels(args.labels or {})]


def _folder(args: Namespace) -> Path:
    """Where the labels are: beside the file of pairs, or in the run."""
    if args.to:
        return Path(args.to).expanduser()
    if args.run:
        return labels_of_run(Path(args.run))
    file = Path(args.pairs).expanduser()
    return file.with_name(f"{file.name.partition('.')[0]}.labels")


def _labels_in(folder: Path) -> dict[str, list[HumanLabel]]:
    labels = read_labels(folder)
    if not labels:
        raise UserError(f"label: got no labels in {folder}; label some first, or name their folder with --to")
    return labels


def _pair_file(args: Namespace) -> PairFile:
    return PairFile(args.pairs, args.columns or {}, args.labels)


# The page.


def label(args: Namespace, folder: Path) -> None:
    """Serve the page until Ctrl-C."""
    try:
        from ser_lightning.labelling.server import LabelApp, open_socket, serve
    except ModuleNotFoundError as error:
        raise UserError(
            f"label: got no package {error.name}, which the page needs; pip install 'ser-lightning[label]'"
        ) from error
    pairs = _asked(args)
    evidence = None
    if args.run:
        from ser_lightning.labelling.evidence import Evidence

        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its data module tells what `fit` told
        evidence = Evidence(Path(args.run))
    with LabelFile(folder, args.annotator) as file, open_socket(args.port) as listener:
        session, token = Session(pairs, file, args.annotator), secrets.token_urlsafe(16)
        app = LabelApp(session, token, _export_command(args), evidence).app()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/?token={token}"
        say(f"{len(session.labels):,} of {len(pairs):,} pairs are done; labels go to {file.path}", f"Label page: {url}")
        say("Ctrl-C ends it.")
        if args.open:
            webbrowser.open(url)
        with contextlib.suppress(KeyboardInterrupt):
            serve(app, listener)
        say(f"{len(session.labels):,} of {len(pairs):,} pairs are done: {file.path}", "Go on with")
        say(f"  {_export_command(args)}")


def _asked(args: Namespace) -> list[PreferencePair]:
    """The pairs to ask for, in their order."""
    if args.run:
        strategy = load_strategy(args.strategy)
        pool = read_pool(Path(args.run), args.n or 1)
        say(*pool.lost)
        number = args.n or min(NUM_OF_RUN, len(pool.pairs))
        return [pool.pairs[i] for i in strategy.choose(pool.prob_a, pool.pairs, number)]
    file = _pair_file(args)
    pairs = file.unlabelled()
    say(*file.left_out())
    if args.n is not None and args.n > len(pairs):
        raise UserError(f"--n: got {args.n}; need 1 to {len(pairs)}, the pairs of {args.pairs} without a label")
    return pairs[: args.n]


def _export_command(args: Namespace) -> str:
    """The command that makes a file for `fit` of the labels."""
    words = ["--run", args.run] if args.run else [args.pairs]
    words += ["--to", args.to] if args.to else []
    for flag in ("columns", "labels"):
        words += [f"--{flag}", json.dumps(args[flag], ensure_ascii=False)] if args[flag] else []
    return f"python -m ser_lightning label {shlex.join(words)} --export labelled.jsonl"


# Files.


def _all_pairs(args: Namespace) -> tuple[Iterable[PreferencePair], Callable[[], list[str]]]:
    """The pairs of a file or a pool, and a call for the lines on what is missing, once they have been read."""
    if args.run:
        pool = read_pool(Path(args.run))
        return pool.pairs, lambda: pool.lost
    file = _pair_file(args)
    return file.pairs(), file.left_out


def export(args: Namespace, folder: Path) -> None:
    """Write the pairs with the labels of all annotators."""
    to = Path(args.export).expanduser()
    inputs = files_of_run(Path(args.run)) if args.run else [args.pairs]
    problems = [*output_problems("--export", to, [*inputs, folder], args.overwrite)]
    if args.form == "training":
        problems += json_lines_problems("--export", to)
    raise_problems(problems or misplaced("--export", to, folder))
    labels = _labels_in(folder)
    if args.form == "training":
        _export_training(args, labels, folder, to)
        return
    known = {label.pair_id for given in labels.values() for label in given}
    if args.run:  # of a pool of millions, what was asked for
        pool = read_pool(Path(args.run))
        pairs, left_out = [pair for pair in pool.pairs if pair.pair_id in known], pool.lost
    else:
        file = _pair_file(args)
        pairs, left_out = file.unlabelled(), file.left_out()
    rows = (argilla_records if args.form == "argilla" else label_studio_tasks)(pairs, labels)
    write_text_atomically(to, dump(rows))
    say(f"{len(rows):,} pairs with the labels of {', '.join(labels)}: {to}", *left_out)
    where = f"in the pool of {args.run}" if args.run else f"among the pairs of {args.pairs} without a label"
    say(*_lost_labels(known - {pair.pair_id for pair in pairs}, where, folder))
    if args.form == "label_studio":
        say("Its labelling config:", LABEL_STUDIO_CONFIG)


def _lost_labels(pair_ids: set[int], where: str, folder: Path) -> list[str]:
    """A line on labels of pairs that are not there."""
    line = f"Left out: the labels of {len(pair_ids):,} pairs that are not {where}, such as {min(pair_ids, default=0)}; "
    return [f"{line}they stay in {folder}. Has a text changed?"] if pair_ids else []


def _export_training(args: Namespace, labels: dict[str, list[HumanLabel]], folder: Path, to: Path) -> None:
    counts = MergeCounts()
    pairs, left_out = _all_pairs(args)
    rows = training_rows(pairs, verdicts(labels), counts, with_pool=not args.run)
    write_lines_atomically(to, rows)
    say(f"{counts.labelled:,} labelled pairs, {counts.ties:,} of them ties: {to}")
    if counts.unlabelled and not args.run:
        say(f"{counts.unlabelled:,} pairs without a label, for the pool, in the same file")
    if counts.split:
        say(f"Left out: {counts.split:,} pairs on which the annotators are divided")
    if counts.overruled:
        say(f"Left out: the labels of {counts.overruled:,} pairs that {args.pairs} labels otherwise; its labels stay")
    where = f"in the pool of {args.run}" if args.run else f"in {args.pairs}"
    say(*_lost_labels(counts.lost, where, folder), *left_out())
    file = shlex.quote(str(to))
    if args.run:
        checkpoint = shlex.quote(f"{args.run}/checkpoints/last.ckpt")
        command = f"fit --ckpt_path {checkpoint} --run_dir NEW --data.new_data_path {file}"
    else:
        command = f"fit --config rm.yaml --config models/qwen2.5-0.5b.yaml --data.path {file}"
    say("Go on with", f"  python -m ser_lightning {command}")


def import_labels(args: Namespace, folder: Path) -> None:
    """Add the labels of another tool to the folder; what is there already is not added twice."""
    pairs, left_out = _all_pairs(args)
    known = {pair.pair_id for pair in pairs}
    say(*left_out())
    columns, label_map = args.columns or {}, args.labels
    found = read_foreign(Path(args["import"]).expanduser(), known, read_labels(folder), columns, label_map)
    for annotator, labels in found.labels.items():
        with LabelFile(folder, annotator) as file:
            there = latest(file.labels)
            new = [one for one in latest(labels).values() if _is_new(one, there)]
            for one in new:
                file.add(one)
            say(f"{annotator}: {len(new):,} labels added, {len(latest(labels)) - len(new):,} were there: {file.path}")
    if found.unknown:
        say(f"{len(found.unknown):,} labelled rows are of other pairs, such as {min(found.unknown)}")
    if not found.labels:
        raise UserError(f"--import: got no label of these pairs in {args['import']}; is it the file of these pairs?")


def _is_new(label: HumanLabel, there: dict[int, HumanLabel]) -> bool:
    return label.pair_id not in there or there[label.pair_id].answer != label.answer
