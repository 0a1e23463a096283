"""`scripts/lowest_versions.py`: the lower bounds of pyproject.toml are read as they stand, and hold."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lowest_versions import lowest, lowest_versions

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("requirement", "pin"),
    [
        ("torch>=2.8", "torch==2.8"),
        ("transformers<6,>=5.10.1", "transformers==5.10.1"),
        ("jsonargparse[signatures]>=4.47,<5", "jsonargparse[signatures]==4.47"),
        ('tomli>=2; python_version < "3.11"', 'tomli==2; python_version < "3.11"'),
        ("wandb", "wandb"),
    ],
)
def test_a_requirement_is_pinned_to_its_lower_bound(requirement, pin):
    assert lowest(requirement) == pin


@pytest.mark.parametrize("requirement", ["torch==2.8", "torch~=2.8", "torch>2.8"])
def test_another_kind_of_bound_is_refused(requirement):
    with pytest.raises(ValueError, match="write NAME>=VERSION"):
        lowest(requirement)


def test_what_a_user_installs_is_pinned_and_what_a_developer_does_is_not(tmp_path):
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(
        '[project]\nname = "me"\ndependencies = ["torch>=2.8", "rich>=13"]\n'
        '[project.optional-dependencies]\nserve = ["fastapi>=0.110", "uvicorn>=0.9"]\n'
        'label = ["uvicorn>=0.34"]\nall = ["me[serve]"]\ndev = ["pytest>=8"]\n'
    )
    assert lowest_versions(pyproject) == ["torch==2.8", "rich==13", "fastapi==0.110", "uvicorn==0.34"]
    assert lowest_versions(pyproject, torch="2.13.0") == [
        "torch==2.13.0",
        "rich==13",
        "fastapi==0.110",
        "uvicorn==0.34",
    ]


def test_every_dependency_has_a_lower_bound():
    assert [pin for pin in lowest_versions(ROOT / "pyproject.toml") if "==" not in pin] == []


@pytest.mark.slow
def test_the_lowest_versions_import_fit_export_and_report(tmp_path):
    """With the torch of constraints.txt: the lowest one has no wheel without gigabytes of CUDA on Linux."""
    [torch] = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    command = [sys.executable, ROOT / "scripts" / "lowest_versions.py", tmp_path / "lowest", "--torch", torch]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    runs = tmp_path / "lowest" / "runs"
    assert (runs / "lora" / "export" / "model.safetensors").is_file()
    assert (runs / "ppo" / "steps.csv").is_file()
    assert (runs / "report.html").is_file()
