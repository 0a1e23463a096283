"""README and docs keep their word: links lead somewhere, tables are complete, commands parse, the snippet is Python."""

import ast
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from ser_lightning.__main__ import COMMANDS, main
from ser_lightning.cli.arguments import bundled_configs
from ser_lightning.runs.files import RoundRow
from tests.helpers import OWN_CONFIG, write_own_config

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.joinpath("docs").rglob("*.md"))]
GENERATED = {ROOT / "docs" / "results.md", ROOT / "docs" / "pictures" / "rounds.svg"}
"""Written by scripts from runs: a checkout without them is complete."""

COMMAND = re.compile(r"python -m ser_lightning (?!COMMAND)([^`\n#]+)")


def commands_of(page):
    """The arguments of every `python -m ser_lightning` on a page."""
    return [shlex.split(found) for found in COMMAND.findall(page.read_text(encoding="utf-8"))]


def configs_of(words):
    """What stands after each `--config`."""
    return [words[i + 1] for i, word in enumerate(words) if word == "--config"]


def with_configs():
    """Every command of the docs that names a config, once; not placeholders, nor the rule of tests/test_tutorial.py."""
    found = {tuple(words) for page in PAGES for words in commands_of(page) if configs_of(words)}
    return sorted(words for words in found if not any(word.startswith(("[", "my_rules.")) for word in words))


def first_cells(text, heading):
    """The names in backticks in the first column of the table below a heading."""
    section = re.split(r"^#+ ", text.split(heading, 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| (.*?) \|", section, flags=re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists() or file in GENERATED, f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def test_the_readme_names_every_config_and_no_other():
    named = first_cells(README.read_text(encoding="utf-8"), "## Configs")
    assert sorted(named) == bundled_configs()


def test_every_column_of_a_round_is_defined_in_order():
    text = ROOT.joinpath("docs", "metrics.md").read_text(encoding="utf-8")
    columns = [field.name for field in fields(RoundRow)]
    assert first_cells(text, "## `rounds.csv`") == columns
    assert not [name for name in columns if f"`select/{name}`" not in text]


def test_the_snippet_that_loads_an_export_is_python_of_six_statements():
    [snippet] = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    statements = ast.parse(snippet).body
    assert sum(not isinstance(statement, ast.ImportFrom) for statement in statements) == 6
    imported = {statement.module for statement in statements if isinstance(statement, ast.ImportFrom)}
    assert imported == {"transformers"}
    assert "config.reward_temperature" in snippet


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_and_name_bundled_configs(page):
    known = {"fit", "validate", "test", "predict", *COMMANDS}
    for words in commands_of(page):
        assert words[0] in known or words[0] in ("--help", "--version"), words
        assert set(configs_of(words)) <= {*bundled_configs(), OWN_CONFIG}, words


def test_there_are_commands_with_configs():
    assert len(with_configs()) >= 5


@pytest.mark.parametrize("words", with_configs(), ids=" ".join)
def test_commands_parse(words, capsys):
    write_own_config(capsys, words)
    with pytest.raises(SystemExit) as stopped:
        main([word for word in words if word != "--print_config"] + ["--print_config"])
    assert stopped.value.code == 0
    assert "class_path" in capsys.readouterr().out
