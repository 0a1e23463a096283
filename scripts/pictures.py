"""Draw `docs/pictures/loop.svg`, the loop of the method, and a run: `rounds.svg` of a `rounds.csv`, the rounds of a
reward model, `policy.svg` of a `steps.csv`, the steps of a policy.

    python scripts/pictures.py runs/NAME

Needs matplotlib. Text becomes paths and no date is written, so the same run gives the same file on every machine.
"""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from ser_lightning.report.figures import ACCENT, GOLD, INK, MUTED, PALE

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
WIDTH_INCHES = 7.5  # 720 px in a README, where an SVG inch has 96 px
LINES = (
    ("seed_oof_accuracy", "seed, out of fold", ACCENT, "o", "-"),
    ("test_accuracy", "test", INK, "s", "-"),
    ("pseudo_label_accuracy", "kept labels", GOLD, "^", "--"),
)
"""Column of `rounds.csv`, name in the legend, colour, marker, line style."""
PANELS = (
    ("reward", "reward that it is trained on", ACCENT, "o"),
    ("judge_score", "second judge", GOLD, "^"),
    ("kl", "KL, nats a response", INK, "s"),
    ("length", "length, tokens", INK, "s"),
)
"""Column of `steps.csv`, title of its panel, colour, marker."""


@dataclass(frozen=True)
class Box:
    """A box of the loop: its centre in pixels, counted from the top left, two lines of text, its size and look."""

    x: float
    y: float
    title: str
    text: str
    edge: str = MUTED
    fill: str = "#f5f7fa"
    width: float = 146
    height: float = 56


SEED = Box(85, 124, "Seed", "15 %: human labels", ACCENT, "#e8f1fa")
POOL = Box(447, 38, "Pool", "85 %: labels hidden", ACCENT, "#e8f1fa")
TRAIN = Box(266, 124, "Train", "round 0: seed alone")
SCORE = Box(447, 124, "Score", "both responses")
CALIBRATE = Box(628, 124, "Calibrate", "on the seed, by folds")
SELECT = Box(628, 232, "Select", "confident labels")
ACCEPT = Box(266, 232, "Accept", "added to the seed")
DELIVERED = Box(85, 232, "Delivered model", "chosen out of fold", GOLD, "#fdf3df")
BOXES = (SEED, POOL, TRAIN, SCORE, CALIBRATE, SELECT, ACCEPT, DELIVERED)
ARROWS = (
    (SEED, TRAIN),
    (POOL, SCORE),
    (TRAIN, SCORE),
    (SCORE, CALIBRATE),
    (CALIBRATE, SELECT),
    (SELECT, ACCEPT),
    (ACCEPT, TRAIN),
)


def main() -> None:
    """Draw what there is to draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run",
        type=Path,
        nargs="?",
        help="run folder with a rounds.csv or steps.csv; without it only the loop is drawn",
    )
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder to write to")
    parser.add_argument("--format", default="svg", choices=["svg", "png"], help="png is for a look at the result")
    args = parser.parse_args()
    tables = {"rounds": ("rounds.csv", draw_rounds), "policy": ("steps.csv", draw_policy)}
    found = {name: table for name, table in tables.items() if args.run is not None and (args.run / table[0]).is_file()}
    if args.run is not None and not found:
        parser.error(
            f"run: {args.run} has no rounds.csv and no steps.csv; give the folder of a fit that has finished round 0, "
            "or of an RL stage"
        )
    plt.rcParams.update({"font.size": 10, "svg.hashsalt": "ser-lightning", "text.color": INK, "axes.labelcolor": INK})
    args.out.mkdir(parents=True, exist_ok=True)
    figures = {
        "loop": draw_loop(),
        **{k: draw(read_columns(args.run / file)) for k, (file, draw) in found.items()},
    }
    for name, figure in figures.items():
        path = args.out / f"{name}.{args.format}"
        figure.savefig(path, facecolor="white", metadata={"Date": None} if args.format == "svg" else None)
        print(path)


def read_columns(path: Path) -> dict[str, list[float]]:
    """The columns of a table, by name; NaN where a cell is empty."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name] or "nan") for row in rows] for name in rows[0]}


def draw_rounds(columns: dict[str, list[float]]) -> Figure:
    """Accuracies by round as lines, the kept share of the pool as pale bars, the delivered round marked."""
    figure, axes = plt.subplots(figsize=(WIDTH_INCHES, 3.9), layout="constrained")
    rounds = columns["round"]
    shares = axes.twinx()
    coverage = [
        100 * kept / scored if scored else 0.0 for kept, scored in zip(columns["kept"], columns["scored"], strict=True)
    ]
    shares.bar(rounds, coverage, width=0.5, color=PALE, label="kept share of the pool (right axis)")
    shares.set(ylim=(0, 100), ylabel="kept share of the pool, %")
    axes.set_zorder(shares.get_zorder() + 1)  # lines before bars
    axes.patch.set_visible(False)
    for name, label, colour, marker, style in LINES:
        if any(value == value for value in columns[name]):
            axes.plot(
                rounds, [100 * v for v in columns[name]], style, marker=marker, color=colour, label=label, lw=2, ms=6
            )
    delivered = rounds[columns["delivered"].index(1)]
    axes.axvline(delivered, color=MUTED, lw=1, ls=":", zorder=0)
    axes.annotate("delivered", (delivered, 1), xycoords=("data", "axes fraction"), xytext=(0, 4),
                  textcoords="offset points", ha="center", color=INK, weight="bold")  # fmt: skip
    axes.set(xlabel="round (0 is the seed model)", ylabel="accuracy, %", xlim=(rounds[0] - 0.5, rounds[-1] + 0.5))
    axes.set_xticks(rounds, [f"{r:.0f}" for r in rounds])
    axes.margins(y=0.15)
    for one in (axes, shares):
        one.spines[["top"]].set_visible(False)
        one.tick_params(colors=MUTED)
    handles = [*axes.get_legend_handles_labels()[0], *shares.get_legend_handles_labels()[0]]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9, columnspacing=1.2
    )
    return figure


def draw_policy(columns: dict[str, list[float]]) -> Figure:
    """Reward, second judge, KL and length by step, with 95 % intervals where there are any; the judge's best marked."""
    panels = [panel for panel in PANELS if any(value == value for value in columns[panel[0]])]
    num_rows, num_columns = (2, 2) if len(panels) == 4 else (1, len(panels))
    figure, grid = plt.subplots(
        num_rows, num_columns, sharex=True, squeeze=False, figsize=(WIDTH_INCHES, 0.4 + 2.1 * num_rows),
        layout="constrained",
    )  # fmt: skip
    steps = columns["step"]
    judged = {step: value for step, value in zip(steps, columns["judge_score"], strict=True) if value == value}
    best = max(judged, key=lambda step: judged[step]) if judged else None
    for axes, (name, title, colour, marker) in zip(grid.flat, panels, strict=True):
        if f"{name}_low" in columns:
            axes.fill_between(steps, columns[f"{name}_low"], columns[f"{name}_high"], color=PALE, lw=0)
        axes.plot(steps, columns[name], color=colour, marker=marker, lw=2, ms=4)
        if best is not None:
            axes.axvline(best, color=MUTED, lw=1, ls=":", zorder=0)
        if best is not None and name == "judge_score":
            axes.annotate("best", (best, 0), xycoords=("data", "axes fraction"), xytext=(4, 4),
                          textcoords="offset points", ha="left", color=INK, weight="bold", fontsize=9)  # fmt: skip
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axes in grid[-1]:
        axes.set_xlabel("step (0 is the starting policy)")
    return figure


def draw_loop() -> Figure:
    """The loop: train, score the pool, calibrate, select, accept, train again; and the way out of it."""
    width, height = 720, 320
    figure = plt.figure(figsize=(WIDTH_INCHES, WIDTH_INCHES * height / width))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for box in BOXES:
        _draw_box(axes, box)
    for start, end in ARROWS:
        _draw_arrow(axes, *_border_points(start, end))
    axes.text(447, 222, "confident", ha="center", va="center", fontsize=9, color=MUTED)
    axes.text(447, 243, "the others stay in the pool", ha="center", va="center", fontsize=9, color=MUTED)
    axes.text(276, 179, "retrain", ha="left", va="center", fontsize=9, color=MUTED)
    below = DELIVERED.y + DELIVERED.height / 2
    axes.plot([SELECT.x, SELECT.x, DELIVERED.x], [below, 292, 292], color=GOLD, lw=1.5, solid_joinstyle="round")
    _draw_arrow(axes, (DELIVERED.x, 292), (DELIVERED.x, below), GOLD)
    axes.text((SELECT.x + DELIVERED.x) / 2, 306, "converged, or the last round", ha="center", va="center",
              fontsize=9, color=MUTED)  # fmt: skip
    return figure


def _draw_box(axes: Axes, box: Box) -> None:
    corner = box.x - box.width / 2, box.y - box.height / 2
    style = "round,pad=0,rounding_size=7"
    axes.add_patch(FancyBboxPatch(corner, box.width, box.height, boxstyle=style, fc=box.fill, ec=box.edge, lw=1.5))
    axes.text(box.x, box.y - 10, box.title, ha="center", va="center", fontsize=11, weight="bold")
    axes.text(box.x, box.y + 12, box.text, ha="center", va="center", fontsize=9, color=MUTED)


def _draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.5, "shrinkA": 0, "shrinkB": 1, "mutation_scale": 13}
    axes.annotate("", xy=end, xytext=start, arrowprops=arrow)


def _border_points(start: Box, end: Box) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where a straight arrow leaves one box and reaches another that stands beside, above or below it."""
    if start.y == end.y:
        side = 1 if end.x > start.x else -1
        return (start.x + side * start.width / 2, start.y), (end.x - side * end.width / 2, end.y)
    side = 1 if end.y > start.y else -1
    return (start.x, start.y + side * start.height / 2), (end.x, end.y - side * end.height / 2)


if __name__ == "__main__":
    main()
