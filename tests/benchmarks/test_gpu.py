"""The suite for a GPU, every part in small on a CPU, and how it keeps time and results."""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path
from select import select
from tempfile import gettempdir
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ser_lightning.__main__ import main
from ser_lightning.models.backbone import Backbone
from ser_lightning.models.policy import load_policy
from ser_lightning.models.reward_model import load_reward_model
from tests.helpers import slow


@pytest.fixture
def job(tmp_path):
    made = import_module("benchmarks.gpu.job").Job(tmp_path / "part.json", True, 300, tmp_path / "out", tmp_path)
    made.record()
    return made


def figures(job):
    return json.loads(job.file.read_text())["figures"]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["135m", "0.5b"])
def test_speed(job, shape):
    import_module("benchmarks.gpu.speed").run(job, shape)
    found = figures(job)
    assert found["trained"] == ("full" if shape == "135m" else "lora")
    tasks = found["profiles"]["hh"]
    assert tasks["label"]["ways"].keys() == {
        *("packed", "packed, adapters", "padded, adapters", "pipeline", "pipeline, defaults")
    }
    assert tasks["train"]["ways"].keys() == {"packed", "padded", "trl", "trl, defaults"}
    for task in tasks.values():
        ways = task["ways"]
        assert all(way["pairs_per_second"] > 0 for way in ways.values())
        padded = next(way for name, way in ways.items() if name.startswith("padded"))
        assert ways["packed"]["tokens_per_pair"] < padded["tokens_per_pair"]


@pytest.mark.parametrize("overlay", ["qlora_12gb", *slow("lora_80gb")])
def test_memory(job, overlay):
    import_module("benchmarks.gpu.memory").train(job, overlay)
    found = figures(job)
    assert found["peaks"].keys() == {"loading", "training", "labelling"}
    assert found["plan"]["all"]["training"] > found["plan"]["all"]["labelling"] > 0


@pytest.mark.slow  # most parts run in small in the fast tests
def test_memory_of_ppo(job):
    import_module("benchmarks.gpu.memory").ppo(job)
    assert figures(job)["peaks"].keys() == {"loading", "sampling", "sampling and scoring", "update"}
    assert len(figures(job)["step_seconds"]) == 2


def test_rl(job):
    import_module("benchmarks.gpu.rl").run(job)
    found = figures(job)
    expected = 2 * 2 * 4  # prompts, responses to each, tokens
    assert {side["tokens"] for side in found["sides"].values()} == {expected}
    assert {sampler["tokens"] for sampler in found["samplers"].values()} == {expected}
    assert found["samplers"].keys() == {"ours", "generate", "generate_batch"}


@pytest.mark.slow
def test_compilation_and_smoke(job):
    import_module("benchmarks.gpu.compilation").run(job)
    assert figures(job)["train"]["graphs"] == 0  # a CPU takes dense masks, which nobody compiles
    import_module("benchmarks.gpu.smoke").run(job)
    assert all(figures(job)[f"packed_{q}"]["largest_difference_over_spread"] < 0.2 for q in ("none", "nf4"))


@pytest.mark.slow  # most parts run in small in the fast tests
def test_kernels(job):
    import_module("benchmarks.gpu.kernels").run(job)
    tasks = figures(job)["tasks"]
    assert tasks.keys() == {f"{shape}, {what}" for shape in ("0.5b", "8b") for what in ("label", "train")}
    for task in tasks.values():
        assert sum(task["milliseconds_by_kind"].values()) == pytest.approx(task["milliseconds"])
        assert task["milliseconds_by_kind"]["matrix products"] > 0


@pytest.mark.slow  # see test_rank_failure.py
def test_distributed(job):
    try:
        import_module("benchmarks.gpu.distributed").run(job)
    finally:
        torch.distributed.destroy_process_group()
    assert figures(job)["runs"] == {"ddp, lora": {"rounds": 2, "backend": "gloo"}}


def test_evidence_goes_on_where_it_was(job, monkeypatch):
    def run_here(words, **_):
        assert words[1:3] == ["-m", "ser_lightning"]
        return subprocess.CompletedProcess(words, main(words[3:]), "", "")

    evidence = import_module("benchmarks.gpu.evidence")
    monkeypatch.setattr(evidence, "subprocess", SimpleNamespace(run=run_here, TimeoutExpired=TimeoutError))
    assert evidence.run(job) is None
    [row] = figures(job)["runs"]
    assert row["rounds"][0]["round"] == 0 and (row["model"], row["data"], row["seed"]) == ("smollm2-135m", "pandalm", 1)
    assert [run[3:] for run in evidence.plans(job)][:4] == [
        (1, "last"),
        (1, "mean_judge"),
        (1, "all_labels"),
        (2, "last"),
    ]
    assert len(evidence.plans(job)) == 15 and row["condition"] == "last"
    lines = (job.out / "evidence.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [row]


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("load", [load_reward_model, load_policy])
def test_made_up_weights_are_laid_out_as_loaded_ones(tmp_path, quantize, load):
    shapes = import_module("benchmarks.gpu.shapes")
    folder = shapes.write_folder(tmp_path / "model", "8b", True)
    backbone = Backbone(str(folder), quantize=quantize, dtype="bfloat16")
    with shapes.random_weights("cpu"):
        made = load(backbone)
        classes = (AutoModelForCausalLM, AutoModelForSequenceClassification)
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert all("from_pretrained" not in vars(cls) for cls in classes)
    loaded = load(backbone)
    for one, other in ((made.named_parameters, loaded.named_parameters), (made.named_buffers, loaded.named_buffers)):
        described = [{n: (type(p), p.dtype, p.shape, p.requires_grad) for n, p in group()} for group in (one, other)]
        assert described[0] == described[1]
    for name, buffer in loaded.named_buffers():
        assert torch.equal(dict(made.named_buffers())[name], buffer), name


def test_shared_weights_are_the_same_memory(tmp_path):
    shapes = import_module("benchmarks.gpu.shapes")
    folder = shapes.write_folder(tmp_path / "model", "0.5b", True)
    with shapes.random_weights("cpu", share=True):
        one, other = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16) for _ in range(2))
    assert one.lm_head.weight is one.model.embed_tokens.weight  # tied, as the shape says
    assert [p.data_ptr() for p in one.parameters()] == [p.data_ptr() for p in other.parameters()]


# The one command.


@pytest.fixture
def suite():
    return import_module("benchmarks.gpu.run")


@pytest.mark.slow
def test_a_part_in_a_process_of_its_own_leaves_a_file(suite, tmp_path, capfd):
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    code = suite.main(["--tiny", "--only", "correctness", "--out", str(out), "--scratch", str(scratch)])
    assert code == 0, capfd.readouterr().out + (scratch / "correctness.log").read_text()
    [file] = out.glob("*.json")
    result = json.loads(file.read_text())
    assert (file.stem, result["status"], result["tiny"]) == ("correctness", "ok", True)
    assert result["figures"]["counts"]["passed"] > 0
    assert result["machine"]["versions"]["torch"] == torch.__version__


@pytest.fixture
def settings(tmp_path):
    return argparse.Namespace(
        **{"out": tmp_path / "out", "scratch": tmp_path, "tiny": True, "only": None, "minutes": 9.0, "commit": None},
        **{"data": None, "models": None},
    )


def write_result(settings, name, status, **more):
    settings.out.mkdir(exist_ok=True)
    (settings.out / f"{name}.json").write_text(json.dumps({"status": status, **more}))


def test_what_is_missing_comes_first_then_what_failed(suite, settings):
    for name, status in (("smoke", "ok"), ("correctness", "failed"), ("memory_12gb", "timed out")):
        write_result(settings, name, status)
    names = [part.name for part in suite.chosen_parts(settings)]
    assert names[-2:] == ["correctness", "memory_12gb"] and "smoke" not in names and len(names) == len(suite.PARTS) - 1
    settings.only = ["smoke"]
    assert [part.name for part in suite.chosen_parts(settings)] == ["smoke"]


def start_instead(suite, monkeypatch, words):
    started = subprocess.Popen
    monkeypatch.setattr(suite.subprocess, "Popen", lambda _, **kwargs: started(words, **kwargs))


def test_a_part_whose_time_is_over_is_killed_with_its_children_and_keeps_its_figures(suite, settings, monkeypatch):
    code = (
        "import subprocess, json, pathlib\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"folder = pathlib.Path({str(settings.scratch)!r})\n"
        "(folder / 'smoke.json').write_text(json.dumps({'figures': {'child': child.pid}}))\n"
        "print('at work', flush=True)\n"
        "(folder / 'smoke.ready').touch()\n"
        "child.wait()\n"
    )
    start_instead(suite, monkeypatch, [sys.executable, "-c", code])
    found = suite.Worker(suite.PARTS[0], settings).run(0.1)
    assert found["status"] == "timed out" and found["error"] == ["at work"]
    with contextlib.suppress(ProcessLookupError), open(os.pidfd_open(found["figures"]["child"])) as ended:
        assert select([ended], [], [], 60) == ([ended], [], [])


def test_a_part_that_never_says_that_it_is_ready_is_killed_as_well(suite, settings, monkeypatch):
    start_instead(suite, monkeypatch, ["sleep", "600"])
    monkeypatch.setattr(suite, "IMPORT_SECONDS", 0)
    assert suite.Worker(suite.PARTS[0], settings).run(0.1)["status"] == "timed out"


def test_each_part_leaves_a_file_and_a_line(suite, settings, monkeypatch):
    start_instead(suite, monkeypatch, ["true"])
    lines = suite.run_parts(list(suite.PARTS[:2]), settings)
    assert [line[:2] for line in lines] == [("smoke", "ok"), ("correctness", "ok")]
    assert {file.stem for file in settings.out.iterdir()} == {"smoke", "correctness"}


def test_a_part_that_no_longer_fits_is_said_and_not_started(suite, settings):
    settings.tiny, settings.minutes = False, 0.5
    [line] = suite.run_parts([suite.PARTS[0]], settings)
    assert line[:2] == ("smoke", "no time") and "needs 40 s" in line[3]
    assert not settings.out.exists()


def test_results_name_no_folder_of_a_machine():
    without_paths, root = import_module("benchmarks.gpu.job").without_paths, Path(__file__).parents[2]
    line = f'File "{root}/benchmarks/gpu/run.py", line 3, "/opt/x/lib/site-packages/torch/a.py:1" in {gettempdir()}/b'
    assert without_paths(line) == 'File "benchmarks/gpu/run.py", line 3, "torch/a.py:1" in b'
    for file in (root / "benchmarks" / "gpu" / "results").glob("*.json"):
        assert not any(part in file.read_text() for part in ("-packages/", "/tmp/", str(root))), file


def test_figures_are_not_lost_to_a_later_failure(suite, settings):
    write_result(settings, "smoke", "timed out", figures={"rate": 1.0})
    file = settings.out / "smoke.json"
    suite.keep(file, {"status": "failed"})
    assert json.loads(file.read_text())["figures"] == {"rate": 1.0}
    suite.keep(file, {"status": "ok", "figures": {"rate": 2.0}})
    assert json.loads(file.read_text())["status"] == "ok"


# The tables.

MACHINE = {"card": "Card X", "driver": "1.2", "versions": {"torch": "2.11.0"}}


def test_without_results_every_table_says_so(tmp_path):
    tables = import_module("benchmarks.gpu.tables")
    (tmp_path / "smoke.json").write_text(json.dumps({"tiny": True, "figures": {"headline": "x"}}))
    assert tables.load(tmp_path) == {}
    texts = [text for page in tables.tables({}).values() for text in page.values()]
    assert all("not measured yet" in text for text in texts) and tables.memory_measured({}) == {}


def test_tables_by_hand():
    tables = import_module("benchmarks.gpu.tables")
    plan = {"all": {"training": 9 * 2**30, "labelling": 6 * 2**30}}
    peaks = {"loading": 0, "training": 7 * 2**30, "labelling": 6 * 2**30}
    memory = {"gigabytes": 12, "plan": plan, "peaks": peaks, "paged_bytes": 2**30}
    ways = {
        "packed": {"pairs_per_second": 100.0, "tokens_per_pair": 300, "peak_bytes": 2**31, "setting": 8192},
        "packed, Liger": {"pairs_per_second": 120.0, "tokens_per_pair": 300, "peak_bytes": 2**30, "setting": 8192},
        "packed, adapters": {"pairs_per_second": 80.0, "setting": 8192},
        "padded, adapters": {"pairs_per_second": 40.0, "setting": 8192},
        "pipeline": {"pairs_per_second": 50.0, "tokens_per_pair": 640, "setting": 64},
        "pipeline, defaults": {"pairs_per_second": 10.0, "setting": 1},
    }
    speed = {"shape": "8b", "layer_weights": 1000, "matmul_rate": 1.2e8, "profiles": {"hh": {"label": {"ways": ways}}}}
    results = {
        "memory_12gb": {"status": "ok", "machine": MACHINE, "figures": memory},
        "speed_8b": {"status": "timed out", "machine": MACHINE, "figures": speed},
    }
    assert tables.memory_measured(results) == {"hardware/qlora_12gb.yaml": "8.0 GiB"}
    found = tables.tables(results)
    assert "| `qlora_12gb` | training | 12 GB | 8.0 | 9.0 | 1.12 |" in found["hardware.md"]["gpu_memory"]
    assert "| `qlora_12gb` | labelling | 12 GB | 6.0 | 6.0 | 1.00 |" in found["hardware.md"]["gpu_memory"]
    row = "| 8b | HH-RLHF | labelling | 100.0 (300 tokens a pair) | 120.0 (300 tokens a pair) | 50.0 (640 tokens a "
    row += "pair), pipeline in batches of 64 | 2.40 | 12.00 | 2.00 | 0.60 | 1.0 |"
    assert row in found["performance.md"]["gpu_speed"].splitlines()
    assert "Measured on Card X (driver 1.2, PyTorch 2.11.0), bfloat16." in found["performance.md"]["gpu_speed"]


def test_a_setting_that_is_too_large_gives_way_to_the_next():
    speed, ways = import_module("benchmarks.gpu.speed"), import_module("benchmarks.gpu.ways")

    def work(pairs, setting, counter):
        if setting > 8:
            raise torch.OutOfMemoryError
        counter.tokens = 10 * len(pairs)
        return 2.0

    way = ways.Way(torch.nn.Identity(), work)
    pairs = [([1], [2])] * 4
    assert speed.measure_within(way, pairs, [4, 8, 16, 32]) == (8, way.measure(pairs, 8))
    assert way.measure(pairs, 8)["pairs_per_second"] == 2.0
    setting, result = speed.measure_within(way, pairs, [16])
    assert setting == 16 and result["error"] == "out of memory"


def test_the_readme_has_the_memory_that_was_measured():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    peaks = dict(re.findall(r"^\| `(hardware/[^`]+)` \|.*; peak with 8B: ([^|]+) \|$", readme, re.MULTILINE))
    assert peaks and peaks == import_module("benchmarks.gpu.tables").memory_measured()


def test_waits_are_counted_by_the_line_that_makes_them(monkeypatch):
    waits = import_module("benchmarks.gpu.waits")
    with waits.counted_waits() as found:  # without a card
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    assert not found
    modes = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with waits.counted_waits() as found:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert modes == ["warn", "default"]
    [(place, number)] = found.items()
    assert place.startswith("tests/benchmarks/test_gpu.py:") and number == 3
    assert waits.summary(found, 2) == {"a_step": 1.5, "places": {place: 3}}
