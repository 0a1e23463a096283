"""Imports run one way, and every module can be imported by itself."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    ("errors", "records", "atomic", "ranks", "collectives", "seeds", "model_card"),
    ("losses", "calibration", "policy_math", "encode", "packing", "layouts"),
    (
        "metrics",
        "response_stats",
        "selection",
        "guards",
        "outlook",
        "backbone",
        "trainable",
        "identity",
        "bodies",
        "masks",
        "floors",
        "evaluation",
        "reward_bench",
        "ab_tests",
        "gates",
    ),
    ("scorer", "scoring", "checkpoints", "length_quota", "shards", "schedule", "strategies", "features", "updates"),
    ("memory", "forecast", "plan_text"),
    ("policy", "rollout", "policy_run", "policy_module", "policy_export", "shared_base", "experience"),
    ("run_folder", "reward_run", "export", "judges", "rewards", "file_rows", "reward_scorer"),
    ("score", "compare", "bench"),
    ("report_data", "report_figures", "report_tables", "report", "query"),
    ("reward_module", "sft_module", "ppo_module", "generate_module", "arguments", "diagnosis"),
    ("cli", "plan"),
    ("__main__",),
)
"""From the ground up: a module imports from floors below its own, or from an earlier module of its own."""


def modules_below(folder):
    return sorted(ROOT.joinpath(folder).glob("*.py"))


def imports_of(path):
    """The `ser_lightning` modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("ser_lightning."))


def test_the_package_imports_neither_callbacks_nor_datamodules():
    for path in modules_below("ser_lightning"):
        above = [n for n in imports_of(path) if n.startswith(("ser_lightning.callbacks", "ser_lightning.datamodules"))]
        assert not above, f"{path.name} imports {above}"


def test_datamodules_import_no_callbacks():
    for path in modules_below("datamodules"):
        assert not [name for name in imports_of(path) if name.startswith("ser_lightning.callbacks")], path


def test_inside_the_package_imports_run_down_the_floors():
    order = [name for floor in FLOORS for name in floor]
    for path in modules_below("ser_lightning"):
        if path.stem == "__init__":
            continue
        assert path.stem in order, f"{path.name} stands on no floor of {__file__}"
        for name in {n.split(".")[1] for n in imports_of(path)} & set(order):
            assert order.index(name) < order.index(path.stem), f"{path.stem} imports {name}"


@pytest.mark.parametrize("package", ["callbacks", "datamodules"])
def test_nothing_is_imported_under_its_bare_name(package):
    for folder in ("ser_lightning", "callbacks", "datamodules"):
        for path in modules_below(folder):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom):
                    assert (node.module or "").split(".")[0] != package, path


@pytest.mark.parametrize("path", [p for f in ("ser_lightning", "callbacks", "datamodules") for p in modules_below(f)])
def test_every_module_imports_and_says_what_it_is(path):
    folder = path.parent.name
    prefix = "ser_lightning" if folder == "ser_lightning" else f"ser_lightning.{folder}"
    module = import_module(prefix if path.stem == "__init__" else f"{prefix}.{path.stem}")
    assert module.__doc__ and Path(module.__file__).samefile(path)
