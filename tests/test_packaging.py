"""The wheel: it holds what the checkout maps, and runs from any folder, also from the checkout's root."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ser_lightning.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the checkout and a stale `build/` adds nothing."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    for name in ("ser_lightning", "callbacks", "datamodules", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel's content in a folder of its own."""
    target = tmp_path_factory.mktemp("installed")
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    return target


def test_the_wheel_holds_every_file_of_the_checkout(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"ser_lightning/{path.relative_to(ROOT).as_posix().removeprefix('ser_lightning/')}"
        for folder, patterns in {
            "ser_lightning": ["**/*.py", "**/*.html", "synthetic/world_lm/*"],
            "callbacks": ["*.py"],
            "datamodules": ["*.py"],
            "configs": ["*.py", "**/*.yaml"],
        }.items()
        for pattern in patterns
        for path in ROOT.joinpath(folder).glob(pattern)
        if path.is_file()
    }
    assert expected <= held
    assert "ser_lightning/configs/rm.yaml" in held
    assert not [name for name in held if name.split("/")[0] in ("callbacks", "datamodules", "configs", "tests")]


@pytest.mark.slow  # two processes that import everything
def test_the_wheel_runs_from_any_folder(installed, tmp_path):
    shown = run_installed(installed, tmp_path, "fit", "--config", "rm.yaml", "--print_config")
    assert "ser_lightning.RewardModule" in shown
    where = "import ser_lightning.callbacks, ser_lightning.datamodules as d; print(d.__file__)"
    assert run_python(installed, tmp_path, "-c", where).strip().startswith(str(installed))


def test_the_wheel_runs_from_the_checkouts_root_and_its_help_names_every_command(installed):
    done = run(installed, ROOT, "-m", "ser_lightning", "--help")
    for command in ("fit", "validate", "test", "predict", *COMMANDS):
        assert command in done.stdout
    assert done.stderr == ""


def run_installed(installed, cwd, *args):
    return run_python(installed, cwd, "-m", "ser_lightning", *args)


def run_python(installed, cwd, *args):
    return run(installed, cwd, *args).stdout


def run(installed, cwd, *args):
    environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *args], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done
