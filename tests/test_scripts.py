import json
import subprocess
import sys
from pathlib import Path

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
