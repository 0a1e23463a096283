"""Do the lower bounds of pyproject.toml hold? Installs exactly them, imports every module and trains in small.

python scripts/lowest_versions.py FOLDER [--torch 2.13.0]

FOLDER is made, and holds the environment and the runs. On Linux the older wheels of torch bring gigabytes of CUDA
libraries: `--torch` takes another version in its place.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
SOURCES = ("ser_lightning", "callbacks", "datamodules", "configs", "pyproject.toml", "README.md", "LICENSE")
NOT_IN_USE = ("dev", "docs", "liger")
"""Extras for those who work on this project, and one that needs a GPU."""

IMPORT_ALL = """
import importlib, pkgutil, ser_lightning
names = [module.name for module in pkgutil.walk_packages(ser_lightning.__path__, "ser_lightning.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names), "modules imported")
"""

SMALL = ("--config", "rm.yaml", "--config", "debug/two_steps.yaml", "--config", "hardware/cpu.yaml")
WORLD = ("--data.synthetic_pairs", "200", "--config", "hardware/cpu.yaml")
COMMANDS = [
    ("fit", *SMALL, "--run_dir", "full"),
    ("fit", *SMALL, "--model.backbone.train", "lora", "--run_dir", "lora"),
    ("fit", *SMALL, "--model.backbone.train", "lora", "--model.backbone.quantize", "nf4", "--run_dir", "qlora"),
    ("fit", *SMALL, "--config", "frozen.yaml", "--data.max_length", "128", "--run_dir", "head"),
    ("fit", "--config", "sft.yaml", *WORLD, "--trainer.limit_train_batches", "2", "--run_dir", "sft"),
    ("fit", "--config", "ppo.yaml", *WORLD, "--data.steps_per_epoch", "1", "--trainer.max_epochs", "1")
    + ("--model.backbone.path", "sft", "--model.reward_model", "full", "--run_dir", "ppo"),
    ("test", "--run_dir", "lora", "--ckpt_path", "last"),
    ("predict", "--run_dir", "lora", "--ckpt_path", "last"),
    ("export", "lora"),
    ("report", "full", "lora"),
]
"""What runs with the lowest versions, one after the other in one folder."""


def lowest(text: str) -> str:
    """The lowest version that a requirement allows: `a[x]>=1.2,<2` gives `a[x]==1.2`; without a bound it stays.

    Raises:
        ValueError: if there are two lower bounds, or one that is not `>=`.
    """
    requirement = Requirement(text)
    bounds = [part for part in requirement.specifier if part.operator not in ("<", "<=", "!=")]
    if any(part.operator != ">=" for part in bounds) or len(bounds) > 1:
        raise ValueError(f"{text}: got no single lower bound; write NAME>=VERSION")
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    pin = f"=={bounds[0].version}" if bounds else ""
    marker = f"; {requirement.marker}" if requirement.marker else ""
    return f"{requirement.name}{extras}{pin}{marker}"


def lowest_versions(pyproject: Path, torch: str | None = None) -> list[str]:
    """A pin for everything that somebody who runs the package installs, with `torch` as given if it is."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    wanted = [*project["dependencies"], *(one for name in extras if name not in NOT_IN_USE for one in extras[name])]
    pins: dict[str, str] = {}
    for text in wanted:
        name, pin = Requirement(text).name, lowest(text)
        if name != project["name"] and (name not in pins or version_of(pin) > version_of(pins[name])):
            pins[name] = pin  # of two extras that want the same package, the higher bound counts
    if torch:
        pins["torch"] = f"torch=={torch}"
    return list(pins.values())


def version_of(pin: str) -> Version:
    """The version of a pin, 0 without one."""
    return max((Version(part.version) for part in Requirement(pin).specifier), default=Version("0"))


def install(folder: Path, pins: list[str]) -> Path:
    """A new environment with these pins and a copy of the project, and its interpreter."""
    source = folder / "source"
    for name in SOURCES:
        copy = shutil.copytree if ROOT.joinpath(name).is_dir() else shutil.copy
        source.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, source / name)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for packages in ([pin for pin in pins if pin.startswith("torch==")], [*pins, "setuptools>=77"]):
        subprocess.run([*pip, *packages], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", str(source)], check=True)
    return python


def main(argv: list[str] | None = None) -> int:
    """Install, import, run; the exit code of the first command that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument("--torch", help="version of torch in place of the lowest one")
    arguments = parser.parse_args(argv)
    pins = lowest_versions(ROOT / "pyproject.toml", arguments.torch)
    print(*pins, sep="\n", flush=True)
    python = install(arguments.folder, pins)
    (runs := arguments.folder / "runs").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    for words in (("-c", IMPORT_ALL), *(("-m", "ser_lightning", *command) for command in COMMANDS)):
        print("$", *words if words[0] == "-m" else ("import every module",), flush=True)
        done = subprocess.run([str(python), *words], cwd=runs, env=environment)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
