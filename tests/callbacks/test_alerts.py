"""What goes to Weights & Biases, and that it can never end a run."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import WandbLogger

from ser_lightning.callbacks.alerts import CARD_COLUMNS, alert, log_round_tables, log_run_artifact
from ser_lightning.callbacks.report import ReportCallback
from tests.helpers import data, evolution, module, trainer


class FakeRun:
    """Keeps what it is told."""

    id = "abc"

    def __init__(self):
        self.told = []

    def alert(self, **words):
        self.told.append(words)

    def log(self, tables):
        self.told.append(tables)

    def log_artifact(self, artifact):
        self.told.append(artifact)


@pytest.fixture
def run(monkeypatch):
    run = FakeRun()
    monkeypatch.setattr(WandbLogger, "experiment", property(lambda self: run))
    return run


def trainer_of(is_global_zero=True):
    return SimpleNamespace(is_global_zero=is_global_zero, callbacks=[], loggers=[object(), WandbLogger(offline=True)])


def test_an_alert_is_said_and_sent(run):
    with pytest.warns(UserWarning, match="round 1, guard flips: too many"):
        alert(trainer_of(), "round 1, guard flips", "too many")
    assert run.told == [{"title": "round 1, guard flips", "text": "too many", "level": "WARN", "wait_duration": 0}]


def test_other_ranks_send_nothing(run):
    with pytest.warns(UserWarning, match="a: b"):
        alert(trainer_of(False), "a", "b")
    assert run.told == []


def test_a_service_that_fails_only_warns(run, monkeypatch):
    def down(**words):
        raise ConnectionError("no route\nto host")

    run.alert = down
    with pytest.warns(UserWarning, match=r"wandb: alert not sent \(ConnectionError: no route to host\)"):
        alert(trainer_of(), "a", "b")


def test_tables_of_rounds_and_of_pairs(run):
    card = {name: name.upper() for name in CARD_COLUMNS}
    log_round_tables(trainer_of(), [{"round": 0, "kept": 3}, {"round": 1, "kept": 5}], {"most": [card], "least": []}, 1)
    [tables] = run.told
    assert tables["rounds"].columns == ["round", "kept"] and tables["rounds"].data == [[0, 3], [1, 5]]
    assert tables["pairs_to_read"].columns == ["round", "chosen_as", *CARD_COLUMNS]
    assert tables["pairs_to_read"].data == [[1, "most", *(name.upper() for name in CARD_COLUMNS)]]


@pytest.mark.slow
def test_a_run_writes_them_offline(tiny_model_dir, pairs_file):
    run = trainer("run", ReportCallback(), evolution(), logger=WandbLogger(offline=True, save_dir="run"))
    run.fit(module(tiny_model_dir), data(pairs_file))
    run.loggers[0].experiment.finish()
    tables = [p.name.split("_")[0] for p in Path("run/wandb").glob("offline-run-*/files/media/table/*.table.json")]
    assert sorted(tables) == ["pairs", "pairs", "rounds", "rounds"]  # one of each a round


def test_the_artifact_holds_tables_and_no_weights(run, tmp_path):
    (tmp_path / "rounds" / "0").mkdir(parents=True)
    for name in ("rounds.csv", "report.html", "rounds/0/audit.parquet", "rounds/0/guards.json", "rounds/0/model.pt"):
        (tmp_path / name).write_text(name)
    log_run_artifact(trainer_of(), tmp_path)
    [artifact] = run.told
    expected = {"rounds.csv", "report.html", "rounds/0/audit.parquet", "rounds/0/guards.json"}
    assert set(artifact.manifest.entries) == expected
