"""Every mistake of `error_cases.py` gets its one line; a full disk loses no finished round."""

import contextlib
import json
import logging
import re
import resource
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ser_lightning.__main__ import main
from ser_lightning.callbacks.evolution import EvolutionCallback
from ser_lightning.errors import no_room
from tests.error_cases import CASES, DISK_IS_FULL, PAGE, Scene, page
from tests.helpers import problems_of, slow


@pytest.fixture(scope="module")
def here(_tiny_flags):
    """The tiny run on what lies in this folder."""
    flags = [word for word in _tiny_flags if "path=" not in word]
    return [*flags, "--model.backbone.path=model", "--data.path=pairs.jsonl"]


@pytest.fixture(scope="module")
def fitted(here, tiny_model_dir, pairs_file, tmp_path_factory):
    """A run with the flags of `here`."""
    folder = tmp_path_factory.mktemp("fitted")
    shutil.copytree(tiny_model_dir, folder / "model")
    shutil.copy(pairs_file, folder / "pairs.jsonl")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert main(["fit", *here, "--run_dir=run"]) == 0
    return folder / "run"


@pytest.fixture
def scene(here, fitted, tiny_model_dir, pairs_file):
    shutil.copytree(tiny_model_dir, "model")
    shutil.copy(pairs_file, "pairs.jsonl")
    return Scene([json.loads(line) for line in pairs_file.read_text().splitlines()], here, fitted)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_one_line_says_what_is_wrong(scene, capsys, case):
    command = case.command(scene)
    capsys.readouterr()
    (line,) = problems_of(capsys, *command)
    assert re.fullmatch(re.escape(case.line).replace(r"\.\.\.", ".*"), line), line


def test_the_page_of_errors_is_up_to_date():
    assert PAGE.read_text() == page()


def test_a_rule_that_keeps_nothing_says_what_it_could_have_reached(scene, here, caplog):
    caplog.set_level(logging.INFO)
    turned = [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in scene.rows[::2]]
    scene.write([*turned, *scene.rows[1::2]])  # labels that nothing can be learnt from
    assert main(["fit", *here, "--evolution.rule.target=0.99", "--run_dir=run"]) == 0
    assert "Round 0: target 0.990 keeps nothing: the highest that any pair reaches is 0." in caplog.text


@pytest.mark.parametrize("epoch", [4, *slow(3, 5)])
def test_a_full_disk_is_one_line_and_loses_no_round(scene, here, fitted, capsys, monkeypatch, epoch):
    """Files may not grow beyond 3,000 bytes from some epoch of round 1 on: metrics fit, checkpoints do not."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    count_tokens = EvolutionCallback.on_train_batch_end

    def fill_up(self, trainer, *args):
        if trainer.current_epoch == epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, limits[1]))
        count_tokens(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(EvolutionCallback, "on_train_batch_end", fill_up)
        try:
            (line,) = problems_of(capsys, "fit", *here, "--run_dir=run")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert line.startswith("disk: got no room") and line.endswith("free some, then resume with --ckpt_path last")
    audits = [Path(run, "rounds/0/audit.parquet") for run in (fitted, "run")]
    assert audits[0].read_bytes() == audits[1].read_bytes()
    assert main(["fit", "--run_dir=run", "--ckpt_path=last"]) == 0
    for number in (0, 1):
        one, other = (pq.read_table(f"{run}/rounds/{number}/audit.parquet") for run in (fitted, "run"))
        assert one.equals(other)


def test_a_full_disk_is_seen_behind_other_errors():
    with pytest.raises(OSError, match="No space left") as full, Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")
    after = RuntimeError("writer failed")
    after.__context__ = full.value
    assert no_room(after) == no_room(full.value) == DISK_IS_FULL
    assert no_room(FileNotFoundError(2, "no such file")) is None
