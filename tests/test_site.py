"""The site is built strictly: every page is in its navigation, every link and anchor leads somewhere."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import ser_lightning
from ser_lightning.cli.arguments import bundled_configs
from ser_lightning.cli.commands import COMMANDS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; without mkdocs there is nothing to test, `make setup` installs it."""
    if find_spec("mkdocs") is None:
        pytest.skip("needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(page):
    """What a page says, without tags."""
    return re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_page_of_docs_is_a_page_of_the_site(site):
    pages = [page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 20
    assert [page for page in pages if not (site / page).is_file()] == []
    assert "make demo" in text_of(site / "index.html")  # the README is the home page
    assert "Unreleased" in text_of(site / "changelog.html")


@pytest.mark.slow
def test_the_reference_names_every_command_config_and_public_name(site):
    commands = text_of(site / "reference" / "commands.html")
    assert [name for name in COMMANDS if f"ser_lightning {name} " not in commands] == []
    configs = text_of(site / "reference" / "configs.html")
    assert [name for name in bundled_configs() if name not in configs] == []
    api = (site / "reference" / "api.html").read_text(encoding="utf-8")
    names = set(ser_lightning.__all__) - {"__version__"}
    assert [name for name in names if not re.search(rf'id="ser_lightning[\w.]*\.{name}"', api)] == []


@pytest.mark.slow
def test_no_page_asks_another_host_for_anything(site):
    asked = re.compile(
        r'<(?:script|img|iframe|source)[^>]+src="?https?:|<link[^>]+rel="?(?:stylesheet|preconnect)[^>]+https?:'
    )
    assert [page.name for page in site.rglob("*.html") if asked.search(page.read_text(encoding="utf-8"))] == []
