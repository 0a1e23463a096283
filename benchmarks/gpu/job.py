"""What a part gets and gives back: where it runs, for how long, and a JSON file with its figures so far."""

import json
import os
import platform
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "lightning", "peft", "bitsandbytes", "triton", "trl")


@dataclass
class Job:
    """One part on its way.

    Attributes:
        file: where its figures go, rewritten whenever there are new ones, so that a part that is killed keeps them.
        is_tiny: small shapes on a CPU, to try the code.
        seconds: the time box; the part is killed when it is over.
        out: folder of all results.
        scratch: folder for models, pairs and runs.
        data: folder with files of preference pairs, None = none given.
        models: folder with folders of pretrained models, None = none given.
        figures: what was found so far.
    """

    file: Path
    is_tiny: bool
    seconds: float
    out: Path
    scratch: Path
    data: Path | None = None
    models: Path | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        """`cuda`, or `cpu` in tiny."""
        return "cpu" if self.is_tiny else "cuda"

    @property
    def accelerator(self) -> str:
        """The trainer's name of the device."""
        return "cpu" if self.is_tiny else "gpu"

    @property
    def seconds_left(self) -> float:
        """Until the part is killed."""
        return self.seconds - (time.monotonic() - self.started)

    def record(self, **figures: Any) -> None:
        """Keep figures; what has the same name is replaced."""
        self.figures |= figures
        write_json(self.file, {"machine": machine(self.device), "figures": self.figures})


def machine(device: str) -> dict[str, Any]:
    """What figures depend on besides the code: the card or processor, the driver, and versions."""
    import torch

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    found: dict[str, Any] = {"versions": versions, "cores": os.cpu_count()}
    if device == "cpu":
        return {"processor": platform.machine(), **found}
    card = torch.cuda.get_device_properties(0)
    size = {"card": card.name, "card_bytes": card.total_memory, "multiprocessors": card.multi_processor_count}
    return {**size, "driver": driver(), "cuda": torch.version.cuda, **found}


def driver() -> str | None:
    """Version of the GPU's driver, None where `nvidia-smi` cannot be asked."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def commit() -> str | None:
    """Commit of the checkout, with a + where files differ from it; None where git cannot be asked."""
    try:
        words = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def without_paths(text: str) -> str:
    """A text with files named from the checkout or from their package on, as on any machine."""
    text = re.sub(r"/[^\s\"']*/(?:site|dist)-packages/", "", text.replace(f"{ROOT}/", ""))
    return text.replace(f"{tempfile.gettempdir()}/", "")


def write_json(file: Path, content: Any) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(file)
