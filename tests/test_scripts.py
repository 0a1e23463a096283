import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


def test_samples_are_those_of_the_last_step():
    folder = Path("run/samples")
    folder.mkdir(parents=True)
    row = {"prompt": "Why?", "before": "No.", "reward_before": -1.0, "reward_after": 2.25, "judge_score_before": None}
    for step in (5, 10, 20):
        text = json.dumps({**row, "after": f"Answer {step} [sic].", "judge_score_after": 3.0}) + "\n"
        (folder / f"{step}.jsonl").write_text(text * 4)
    shown = show_samples("run", "--samples", "2")
    assert shown.returncode == 0
    assert shown.stdout.count("after  | reward  2.25, second judge  3.00 | Answer 20 [sic].") == 2
    assert shown.stdout.count("before | reward -1.00 | No.") == 2
    none = show_samples("elsewhere")
    assert none.returncode == 2 and none.stderr.startswith("error: samples: got none in elsewhere")


def show_samples(*words):
    return subprocess.run([sys.executable, SCRIPTS / "show_samples.py", *words], capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path):
    """A repository whose only commit is a release, `v1.2.3`; a function that writes a file into it."""
    root = tmp_path / "checkout"
    environment = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b.c", "GIT_COMMITTER_NAME": "a"}
    environment |= {"GIT_COMMITTER_EMAIL": "a@b.c", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def git(*words):
        subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, env={**os.environ, **environment})

    def write(version="1.2.3", changelog="## [Unreleased]\n\n## [1.2.3] - 2026-01-31\n- New.\n", tag="v1.2.3"):
        (root / "ser_lightning/utils").mkdir(parents=True)
        (root / "ser_lightning/utils/versions.py").write_text(f'"""Versions."""\n\n__version__ = "{version}"\n')
        (root / "CHANGELOG.md").write_text(f"# Changelog\n\n{changelog}")
        git("init", "--quiet")
        git("add", "--all")
        git("commit", "--quiet", "--message", "Release")
        if tag:
            git("tag", tag)
        return root

    return write, git


def check_release(root):
    return subprocess.run([sys.executable, SCRIPTS / "check_release.py", root], capture_output=True, text=True)


def test_a_release_is_one_whose_version_changelog_and_tag_agree(checkout):
    write, git = checkout
    root = write()
    done = check_release(root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (root / "CHANGELOG.md").write_text((root / "CHANGELOG.md").read_text() + "- More.\n")
    assert check_release(root).stderr == "error: git: got changes that are not committed; commit them, then tag\n"
    git("commit", "--quiet", "--all", "--message", "More")
    assert "v1.2.3 stands on another commit; raise the version" in check_release(root).stderr


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tag": None}, "git: got no tag on this commit; v1.2.3 is missing here: git tag v1.2.3"),
        ({"tag": "v1.2.4"}, "git: got v1.2.4 on this commit; v1.2.3 is missing here"),
        ({"version": "1.2", "tag": "v1.2"}, "got the version 1.2; give MAJOR.MINOR.PATCH"),
        (
            {"version": "1.3.0", "tag": "v1.3.0"},
            "got the sections Unreleased, 1.2.3 first; need Unreleased, then 1.3",
        ),
        (
            {"changelog": "## [Unreleased]\n- Left.\n\n## [1.2.3] - 2026-01-31\n"},
            "got entries under Unreleased; move them to 1.2.3",
        ),
        (
            {"changelog": "## [Unreleased]\n\n## [1.2.3] - not released\n"},
            "got 'not released' after 1.2.3; give its date as YYYY-MM-DD",
        ),
    ],
)
def test_what_does_not_agree_is_named(checkout, wrong, message):
    done = check_release(checkout[0](**wrong))
    assert done.returncode == 2 and message in done.stderr
