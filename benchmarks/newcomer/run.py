"""Play a newcomer: from a file of pairs without labels to a policy's training step, with the commands of the tutorial.

    python -m benchmarks.newcomer.run --pairs labelled.jsonl --model FOLDER

The pairs' own labels are the newcomer's opinion: the file that the commands get has none, and every answer is a key in
the label page, in a headless Chromium. Commands and code are read from the pages of the docs; only the path of a local
model is added. Needs `pip install '.[label,serve]' trl playwright`, and a Chromium.
"""

import argparse
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.shared.results import Results, machine, versions

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = Results(Path(__file__).parent / "results.jsonl", "data", "model")
NUM_PAIRS = 600
NUM_LABELS = 60
WIDTHS = {"wide": 1400, "narrow": 420}
SERVER_SECONDS = 120


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page in a language, `` = none."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def command(beginning: str) -> list[str]:
    """The words of the tutorial's command that begins so."""
    lines = [line for block in blocks(DOCS / "tutorial.md") for line in block.splitlines()]
    [found] = [line for line in lines if line.startswith(beginning)]
    return shlex.split(found)


class Newcomer:
    """A folder to work in, what takes how long, and the answers that the person would give.

    Args:
        folder: empty.
        pairs: rows with prompt, chosen and rejected.
        model: folder of a pretrained model.
    """

    def __init__(self, folder: Path, pairs: list[dict[str, Any]], model: Path) -> None:
        self.folder, self.model = folder, model
        self.better = {frozenset((row["chosen"], row["rejected"])): row["chosen"] for row in pairs}
        self.seconds: dict[str, float] = {}
        draw = random.Random(0)
        with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
            for row in pairs:
                one, other = draw.sample([row["chosen"], row["rejected"]], 2)
                file.write(json.dumps({"prompt": row["prompt"], "response_a": one, "response_b": other}) + "\n")
        (folder / "models").mkdir()
        (folder / "models" / "my-policy").symlink_to(model)  # what the recipes call it
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        self.environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Seconds of a step, shown at its end."""
        print(f"{step} ...", flush=True)
        start = time.monotonic()
        yield
        self.seconds[step] = round(time.monotonic() - start, 1)
        print(f"  {self.seconds[step]:.0f} s", flush=True)

    def run(self, step: str, words: list[str]) -> str:
        """A command to its end; what it printed."""
        with self.timed(step):
            done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{shlex.join(words)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return done.stdout + done.stderr

    @contextmanager
    def server(self, words: list[str]) -> Iterator[str]:
        """A command that serves, until Ctrl-C; the address that it prints."""
        log = self.folder / f"{words[3]}.log"
        with log.open("w") as file:
            process = subprocess.Popen(words, cwd=self.folder, env=self.environment, stdout=file, stderr=file)
        try:
            yield wait_for(lambda: re.search(r"https?://[\w.:]+/?\S*", log.read_text()), SERVER_SECONDS, log)[0]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(SERVER_SECONDS)

    def label(self, page: Any, address: str) -> None:
        """Answer by key what the page asks, and reload it in the middle."""
        page.goto(address)
        for number in range(NUM_LABELS):
            page.wait_for_function(
                "n => document.querySelector('#progress').textContent.startsWith(n + ' of ')", arg=number
            )
            texts = [page.text_content(f"#{side}") or "" for side in ("left", "right")]
            page.keyboard.press("1" if self.better[frozenset(texts)] == texts[0] else "2")
            if number == NUM_LABELS // 2:
                page.wait_for_function(
                    "n => document.querySelector('#progress').textContent.startsWith(n + ' of ')", arg=number + 1
                )
                page.reload()
        page.wait_for_selector("#end:not([hidden])")

    def code(self, step: str, *parts: str) -> str:
        """Python from a page of the docs, in a process of its own."""
        return self.run(step, [sys.executable, "-c", "\n".join(parts)])


def wait_for(look: Any, seconds: float, log: Path) -> Any:
    """What `look` finds, within some seconds."""
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            raise SystemExit(f"nothing came within {seconds:.0f} s:\n{log.read_text()[-3000:]}")
        time.sleep(0.2)
    return found


def play(newcomer: Newcomer, pictures: Path) -> None:
    """The tutorial from its third step on, then the recipes."""
    from playwright.sync_api import sync_playwright  # not needed for the tables

    serve = command("python -m ser_lightning serve")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": WIDTHS["wide"], "height": 900})
        words = [word for word in command("python -m ser_lightning label pairs.jsonl --n") if word != "--open"]
        with newcomer.timed("label 60 pairs"), newcomer.server(words) as address:
            newcomer.label(page, address)
        newcomer.run("put pairs and labels together", command("python -m ser_lightning label pairs.jsonl --export"))
        fit = command("python -m ser_lightning fit")
        newcomer.run("fit", [*fit, f"--model.backbone.path={newcomer.model}"])
        for name, width in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": 900})
            page.goto((newcomer.folder / "runs/mine/report.html").as_uri())
            page.screenshot(path=pictures / f"report_{name}.png", full_page=True)
        browser.close()
    newcomer.run("score", command("python -m ser_lightning score"))
    newcomer.run("export", command("python -m ser_lightning export"))
    best, best_served, parity = blocks(DOCS / "recipes/best_of_n.md", "python")
    with newcomer.server(serve):
        curl = command("curl")
        newcomer.run("one request", ["curl", "--retry", "30", "--retry-connrefused", *curl[1:]])
        newcomer.code("best of n, and parity with the server", best, best_served, parity)
    newcomer.code("one step of TRL's GRPO", blocks(DOCS / "recipes/trl.md", "python")[0])


def main(argv: list[str] | None = None) -> int:
    """Play, and keep the seconds of every step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="JSONL with prompt, chosen and rejected")
    parser.add_argument("--model", type=Path, required=True, help="folder of a pretrained language model")
    parser.add_argument("--folder", type=Path, default=Path("runs/newcomer"), help="work is done here; made anew")
    args = parser.parse_args(argv)
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    rows = [json.loads(line) for line in args.pairs.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    newcomer = Newcomer(args.folder.resolve(), rows[:NUM_PAIRS], args.model.resolve())
    play(newcomer, newcomer.folder)
    total = sum(newcomer.seconds.values())
    for step, seconds in newcomer.seconds.items():
        print(f"{step:<40} {seconds:6.0f} s")
    print(f"{'all':<40} {total:6.0f} s")
    RESULTS.add(
        {
            "data": args.pairs.stem,
            "model": args.model.name,
            "seconds": newcomer.seconds,
            "machine": machine(),
            "versions": versions(),
        }
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
