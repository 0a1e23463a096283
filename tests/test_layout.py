"""Imports run one way, and every module can be imported by itself."""

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("ser_lightning", "callbacks", "datamodules")
MAX_MODULES = 13
"""Of a folder, with its `__init__.py`: beyond that a newcomer no longer finds the door."""


def modules() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in ROOT.joinpath(folder).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "ser_lightning" else ("ser_lightning", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_imports_run_down_the_layers_of_pyproject(tmp_path):
    # import-linter looks for a package's modules below its folder only, as type checkers do.
    shutil.copytree(ROOT / "ser_lightning", tmp_path / "ser_lightning")
    for folder in ("callbacks", "datamodules", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / "ser_lightning" / folder)
    command = "from importlinter.cli import lint_imports_command as c; c()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--config", str(ROOT / "pyproject.toml"), "--no-cache"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("folder", sorted({path.parent for path in modules()}), ids=name_of)
def test_no_folder_holds_more_than_a_dozen_modules(folder):
    assert len(list(folder.glob("*.py"))) <= MAX_MODULES


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_every_module_imports_and_says_what_it_is(path):
    module = import_module(name_of(path))
    assert module.__doc__ and Path(module.__file__).samefile(path)
