"""Draw `docs/pictures/study.svg` and `speed.svg` from the results of the studies: `python -m benchmarks.pictures`."""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from benchmarks.real_preferences.picture import draw_study
from benchmarks.real_preferences.tables import RESULTS as REAL_PREFERENCES
from benchmarks.real_preferences.tables import by_setting
from benchmarks.speed.picture import draw_speed
from benchmarks.speed.tables import RESULTS as SPEED
from benchmarks.speed.tables import speeds
from benchmarks.tables import DOCS
from ser_lightning.report.figures import INK


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCS / "pictures", help="folder to write to")
    parser.add_argument("--format", default="svg", choices=["svg", "png"], help="png is for a look at the result")
    args = parser.parse_args()
    # The same results give the same file: no date, and ids that do not change.
    plt.rcParams.update({"font.size": 10, "svg.hashsalt": "ser-lightning", "text.color": INK, "axes.labelcolor": INK})
    metadata = {"Date": None} if args.format == "svg" else None
    figures = {"study": draw_study(by_setting(REAL_PREFERENCES.read())), "speed": draw_speed(speeds(SPEED.read()))}
    for name, figure in figures.items():
        path = args.out / f"{name}.{args.format}"
        figure.savefig(path, facecolor="white", metadata=metadata, dpi=150)
        print(path)


if __name__ == "__main__":
    main()
