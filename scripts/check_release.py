"""Do version, CHANGELOG.md and tag agree? `make release` asks before it builds a wheel. See docs/howto/release.md.

python scripts/check_release.py [FOLDER]
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = Path("ser_lightning/utils/versions.py")
CHANGELOG = Path("CHANGELOG.md")
_SECTION = re.compile(r"^## \[(?P<name>[^\]]+)\](?: - (?P<when>.*))?$", re.MULTILINE)


def problems(root: Path) -> Iterator[str]:
    """What keeps the checked-out commit from being a release, a line each.

    Args:
        root: a checkout.
    """
    [version] = re.findall(r'^__version__ = "(.*)"$', (root / VERSIONS).read_text(encoding="utf-8"), re.MULTILINE)
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        yield f"{VERSIONS}: got the version {version}; give MAJOR.MINOR.PATCH, with a1, b1 or rc1 after it at most"
    yield from _changelog_problems((root / CHANGELOG).read_text(encoding="utf-8"), version)
    if _git(root, "status", "--porcelain"):
        yield "git: got changes that are not committed; commit them, then tag"
    tag, tags = f"v{version}", _git(root, "tag", "--points-at", "HEAD").split()
    if tag not in tags:
        is_elsewhere = tag in _git(root, "tag").split()
        what = "stands on another commit; raise the version" if is_elsewhere else f"is missing here: git tag {tag}"
        yield f"git: got {', '.join(tags) or 'no tag'} on this commit; {tag} {what}"


def _changelog_problems(text: str, version: str) -> Iterator[str]:
    sections = [*_SECTION.finditer(text)]
    names = [section["name"] for section in sections]
    if names[:2] != ["Unreleased", version]:
        yield f"{CHANGELOG}: got the sections {', '.join(names[:2])} first; need Unreleased, then {version}"
        return
    unreleased, newest = sections[:2]
    if text[unreleased.end() : newest.start()].strip():
        yield f"{CHANGELOG}: got entries under Unreleased; move them to {version}"
    try:
        date.fromisoformat(newest["when"] or "")
    except ValueError:
        yield f"{CHANGELOG}: got {newest['when']!r} after {version}; give its date as YYYY-MM-DD"


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Print what is wrong; exit code 2 where anything is."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    found = [*problems(root)]
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(2 if found else 0)


if __name__ == "__main__":
    main()
