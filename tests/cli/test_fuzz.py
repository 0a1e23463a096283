"""Mutated data files and configs: a run, or a line for each problem; never a traceback, never a lost round."""

import contextlib
import copy
import io
import json
import math
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ser_lightning.__main__ import main
from ser_lightning.cli.arguments import find_config
from ser_lightning.errors import UserError
from tests.helpers import data, slow

FUZZ = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.generate],  # a failing example is small already, and shrinking it would take minutes
    "report_multiple_bugs": False,
}
ONE_STEP = ["--trainer.fast_dev_run=1", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]

odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from(
        [0.0, -0.5, 0.3, 1.0, 1e-9, 1e30, math.nan, math.inf, "", "x", "1", "null", "\u2028", "a: b", "\ud800"]
    ),
    st.sampled_from([[], {}, [1], [[]], {"x": 1}, {"class_path": "x"}, {"class_path": "torch.optim.SGD"}]),
)


def outcome(*args):
    """Exit code and error lines of one command; whatever else it raises fails the test."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(list(args))
        except SystemExit as stopped:
            code = stopped.code
    lines = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    assert code in (0, 2), said.getvalue()
    assert "Traceback" not in said.getvalue()
    assert bool(lines) == (code == 2), said.getvalue()
    return code


# Data files.


@st.composite
def mutated_rows(draw, rows):
    """Rows in which some values, keys and whole rows are other than they should be."""
    rows = copy.deepcopy(draw(st.permutations(rows[:30])))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(rows) - 1))
        kind = draw(st.sampled_from(["value", "key", "drop key", "row", "drop rows", "turns"]))
        row = rows[place]
        if kind == "row" or not isinstance(row, dict) or not row:
            rows[place] = draw(odd_values)
        elif kind == "value":
            row[draw(st.sampled_from(sorted(row)))] = draw(odd_values)
        elif kind == "key":
            row[draw(st.sampled_from(["label", "id", "response_a", "prompt", "x"]))] = draw(odd_values)
        elif kind == "drop key":
            del row[draw(st.sampled_from(sorted(row)))]
        elif kind == "turns":
            turn = {"role": draw(st.sampled_from(["user", "assistant", "system", "x"])), "content": draw(odd_values)}
            row["prompt"] = [turn] * draw(st.integers(0, 3))
        else:
            rows = rows[: max(1, place)]
    return rows


@st.composite
def mutated_bytes(draw, text):
    """Bytes in which some pieces are cut out, doubled or overwritten."""
    content = bytearray(text)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(0, len(content) - 1)))
        end = min(len(content), start + draw(st.integers(0, 60)))
        patch = draw(
            st.one_of(st.binary(max_size=8), st.sampled_from([b"\n", b'"', b",", b"{", b"\x00", b"\xff\xfe", b"\r"]))
        )
        content[start:end] = patch if draw(st.booleans()) else content[start:end] + patch
    return bytes(content)


def as_csv(rows):
    return "prompt,chosen,rejected\n" + "".join(f'"{r["prompt"]}","{r["chosen"]}","{r["rejected"]}"\n' for r in rows)


@pytest.mark.parametrize("kind", ["rows.jsonl", "bytes.jsonl", "bytes.json", "bytes.csv"])
def test_a_data_file_is_read_or_refused_in_one_line(pairs_file, tiny_tokenizer, kind):
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    texts = {
        "bytes.jsonl": pairs_file.read_bytes()[:3000],
        "bytes.json": json.dumps(rows[:30]).encode(),
        "bytes.csv": as_csv(rows[:30]).encode(),
    }

    @settings(max_examples=50, **FUZZ)
    @given(mutated_rows(rows) if kind == "rows.jsonl" else mutated_bytes(texts[kind]))
    def run(content):
        if not isinstance(content, bytes):
            content = "".join(json.dumps(row) + "\n" for row in content).encode()
        Path(kind).write_bytes(content)
        datamodule = data(Path(kind))
        datamodule.tokenizer = tiny_tokenizer
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                datamodule.prepare_data()
                datamodule.setup("fit")
            except UserError as error:
                problems = error.problems
            else:
                problems = None
        if problems is not None:
            assert problems and not any("\n" in problem for problem in problems)
            return
        assert sum(len(step) for step in datamodule.train_dataloader()) > 0
        scored = [i for batch in datamodule.scoring_dataloader("all") for i in batch.pair_id.tolist()]
        assert sorted(scored) == datamodule.pair_ids("all").tolist()

    run()


# Configs.


def leaves(node, path=()):
    """The paths of all keys in a config."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from leaves(value, (*path, key))


@st.composite
def mutated_config(draw, config):
    """A config in which some keys have odd values, are missing, or are new."""
    config = copy.deepcopy(config)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([p for p in leaves(config) if p[-1] != "num_workers"]))
        node = config
        for key in path[:-1]:
            node = node[key]
        kind = draw(st.sampled_from(["value", "value", "drop", "new"]))
        if kind == "value" or isinstance(node, list):
            node[path[-1]] = draw(odd_values)
        elif kind == "drop":
            del node[path[-1]]
        else:
            node[draw(st.sampled_from(["x", "seed", "lr", "init_args", "class_path"]))] = draw(odd_values)
    return config


@pytest.fixture
def config():
    """What a user copies and edits."""
    return yaml.safe_load(Path(str(find_config("rm.yaml"))).read_text())


@pytest.mark.parametrize("num_examples", [3, *slow(16)])
def test_no_config_ends_in_a_traceback(config, tiny_run, num_examples):
    codes = []

    @settings(max_examples=num_examples, **FUZZ)  # each parses its config dozens of times, to name every problem
    @given(mutated_config(config))
    def run(mutated):
        Path("mutated.yaml").write_text(yaml.safe_dump(mutated))
        codes.append(outcome("fit", "--config", "mutated.yaml", *tiny_run[2:], *ONE_STEP))

    run()
    assert set(codes) == {0, 2} and len(codes) == num_examples  # some are refused, and some change nothing that matters


@pytest.mark.slow
def test_no_resume_with_other_data_or_config_loses_a_finished_round(config, tiny_run, pairs_file):
    """A run that stopped after its first round is resumed with odd configs and data: what is finished stays."""
    shutil.copy(pairs_file, "pairs.jsonl")
    own = [*tiny_run, "--data.path=pairs.jsonl"]
    assert main(["fit", *own, "--run_dir=template", "--trainer.max_epochs=4"]) == 0
    finished = {p.relative_to("template"): p.read_bytes() for p in Path("template/rounds").rglob("*") if p.is_file()}
    assert len(finished) == 7  # model, audit, test scores, guards, cost, notes for the report, their checksums
    text = pairs_file.read_bytes()
    limits = ["--trainer.max_epochs=5", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]

    @settings(max_examples=16, **FUZZ)
    @given(st.one_of(mutated_config(config), mutated_bytes(text)))
    def run(mutated):
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree("template", "run")
        flags = own
        Path("pairs.jsonl").write_bytes(mutated if isinstance(mutated, bytes) else text)
        if not isinstance(mutated, bytes):
            Path("mutated.yaml").write_text(yaml.safe_dump(mutated))
            flags = ["--config", "mutated.yaml", *own[2:]]
        outcome("fit", *flags, *limits, "--run_dir=run", "--ckpt_path=last")
        for name, content in finished.items():
            assert Path("run", name).read_bytes() == content

    run()
