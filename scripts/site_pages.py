"""Hook of mkdocs: the pages of the site that are no files of docs/, and links that lead out of docs/.

The README is the home page, and the reference of commands, configs and public names is generated from the code.
"""

import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

import ser_lightning
from ser_lightning.cli.arguments import bundled_configs
from ser_lightning.cli.commands import COMMANDS

ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "ROADMAP.md": "roadmap.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.md",
    "benchmarks/gpu/README.md": "benchmarks/gpu.md",
    "scripts/slurm_rm.sbatch": "scripts/slurm_rm.md",
    "docs/notebook.ipynb": "notebook.md",
}
"""File of the repository -> page of the site."""
PAGES = {page: file for file, page in OUTSIDE.items()}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
FILE_NAME = re.compile(r"\[(?:[\w.-]+/)*[\w-]+\.md\]\(([^)\s#]+\.md)(#[^)]*)?\)")
"""A link whose words are the name of a page's file, as they should be on a page of the repository."""
CONFIG_GROUPS = {
    "": "Base configs and frozen.yaml",
    "models": "Reward models",
    "policies": "Policies",
    "hardware": "Hardware",
    "loggers": "Loggers",
    "paper": "The paper",
    "debug": "Debugging",
}
API_GROUPS = {
    "Reward model": "RewardModule PreferenceDataModule EvolutionCallback Backbone LoraSettings RewardModel Scorer "
    "reward_function",
    "Selection rules": "CalibratedRule PaperRule ReleasedRule TopShareRule SelectionContext SelectionResult",
    "Callbacks": "GuardCallback BaselineCallback ReportCallback EvaluationCallback PredictionWriter PoolWriter "
    "PolicyWatch PhaseProgressBar WebhookCallback",
    "Policies": "SFTModule ResponseDataModule PPOModule PromptDataModule GenerateModule Sampling PPOSettings "
    "AdaptiveKL FixedKL gold_scores",
    "Records, queries and errors": "PreferencePair PairScores Random MostUncertain UserError",
}


def on_startup(**_: Any) -> None:
    """Lay the packages out as they are imported: mkdocstrings reads sources and follows no package-dir mapping."""
    staged = ROOT / "build" / "site-source" / "ser_lightning"
    shutil.rmtree(staged, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__")
    for name, target in {"ser_lightning": "", "callbacks": "callbacks", "datamodules": "datamodules"}.items():
        shutil.copytree(ROOT / name, staged / target, ignore=ignore)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are generated, and those that stand elsewhere in the repository."""
    generated: dict[str, str | bytes] = {
        "reference/commands.md": commands_page(),
        "reference/configs.md": configs_page(),
        "reference/api.md": api_page(),
    }
    for name, page in OUTSIDE.items():
        if name.endswith(".ipynb"):
            text, resources = MarkdownExporter().from_filename(ROOT / name)
            generated |= {page: text, **resources["outputs"]}
        else:
            text = (ROOT / name).read_text(encoding="utf-8")
            generated[page] = text if name.endswith(".md") else f"# {Path(name).name}\n\n```text\n{text}```\n"
    for page, content in generated.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Make links between files links between pages of the site, with the title in place of a file's name."""
    here = page.file.src_uri
    source = PAGES.get(here, f"docs/{here}")
    folder = posixpath.dirname(here) or "."
    if here == "index.md":
        page.meta["hide"] = ["navigation"]

    def to_site(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        return posixpath.relpath(OUTSIDE.get(target, target.removeprefix("docs/")), folder)

    def to_title(match: re.Match[str]) -> str:
        file = files.get_file_from_path(posixpath.normpath(posixpath.join(folder, match[1])))
        heading = re.search(r"^# (.+)$", file.content_string, flags=re.MULTILINE) if file else None
        return f"[{heading[1]}]({match[1]}{match[2] or ''})" if heading else match[0]

    return FILE_NAME.sub(to_title, LINK.sub(to_site, markdown))


def commands_page() -> str:
    """What `--help` of every command prints."""
    parts = ["# Flags of every command", "What `--help` prints. [The command line](../cli.md) explains it.", help_of()]
    for command in COMMANDS:
        parts += [f"## `{command}`", help_of(command)]
    parts += [
        "## `fit`, `validate`, `test`, `predict`",
        "These take configs: every key of [a config](configs.md) is a flag, and the arguments of the classes are keys.",
    ]
    for key, name in (("model", "RewardModule"), ("data", "PreferenceDataModule")):
        parts += [f"### `{key}` of `rm.yaml`", help_of("fit", f"--{key}.help", f"ser_lightning.{name}")]
    return "\n\n".join(parts) + "\n"


def help_of(*words: str) -> str:
    """The help of one command, 100 characters wide, as a block of text."""
    command = [sys.executable, "-m", "ser_lightning", *words, *([] if len(words) > 1 else ["--help"])]
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
    return f"```text\n{done.stdout.strip()}\n```"


def configs_page() -> str:
    """Every config of the package, as it is."""
    parts = [
        "# Configs",
        "Every config is found by its name, from any folder. A key is an argument of a class: "
        "[the flags](commands.md#model-of-rmyaml) and [the API](api.md) describe them. "
        "[The command line](../cli.md#configs) says how configs are merged.",
    ]
    names = bundled_configs()
    for group, title in CONFIG_GROUPS.items():
        parts.append(f"## {title}")
        for name in (name for name in names if posixpath.dirname(name) == group):
            text = ROOT.joinpath("configs", name).read_text(encoding="utf-8").strip()
            parts.append(f"### `{name}`\n\n```yaml\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def api_page() -> str:
    """The docstring of every public name."""
    modules = {name: f"ser_lightning.{module}" for name, module in ser_lightning._MODULES.items()}
    parts = ["# Python API", "Import these names from `ser_lightning`. [Examples](../api.md) show them at work."]
    for title, names in API_GROUPS.items():
        parts += [f"## {title}", *(f"::: {modules[name]}.{name}" for name in names.split())]
    return "\n\n".join(parts) + "\n"
