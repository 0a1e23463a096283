"""The pictures of a report, as SVG. The same run gives the same bytes; no date, no font of this machine, no network.

Narrow, so that a phone need not shrink them: a wide screen shows two side by side.
"""

import io
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from ser_lightning.evaluation.metrics import wilson_interval
from ser_lightning.report.data import Round, Run, confidence_of, flow_of

INK, MUTED, PALE, ACCENT, GOLD, SAND = "#1f2933", "#52606d", "#d9e0e7", "#1f6fb2", "#b7791f", "#ecd9b0"
COLOURS = (ACCENT, GOLD, "#2f855a", "#9b2c2c", "#6b46c1", "#1f2933", "#0e7490", "#a0527f")
"""Runs of a comparison; they differ in the shape of their marks as well."""
MARKS = "os^Dv*Pp"
ACCURACIES = (
    ("test_accuracy", "test pairs", INK, "s", "-"),
    ("seed_oof_accuracy", "seed, out of fold", ACCENT, "o", "-"),
    ("pseudo_label_accuracy", "kept labels", GOLD, "^", "--"),
    ("pool_accuracy", "all pool labels", MUTED, "v", ":"),
)
"""Column of `rounds.csv`, name, colour, mark, line."""
BASELINES = (("longer", "take the longer", (0, (1, 2))), ("bag_of_words", "bag of words", (0, (5, 2))))
"""Key in the notes of a round, name, line."""
STYLE: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 11,
    "svg.hashsalt": "ser-lightning",
    "svg.fonttype": "path",
    "text.parse_math": False,  # names of runs are no formulas
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 10,
}


@dataclass(frozen=True)
class Picture:
    """One picture of a page."""

    title: str
    alt: str
    """What it shows, in words, for who cannot see it."""
    note: str
    """What stands below it."""
    svg: str

    @property
    def source(self) -> str:
        """As the `src` of an `img`: in there nothing runs, and ids of two pictures cannot clash."""
        return "data:image/svg+xml;base64," + b64encode(self.svg.encode()).decode()


def draw(plot: Callable[[Axes], None], height: float, legend_columns: int = 2) -> str:
    """One pair of axes as SVG.

    Args:
        height: of the picture, in inches; its width is 4.8.
        legend_columns: of the legend below it.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        plot(axes := figure.add_subplot())
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=legend_columns)
        figure.draw_without_rendering()
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
            # Else the layout chooses other ticks, whose wider labels need another layout.
            axis.set_major_locator(FixedLocator(axis.get_majorticklocs().tolist()))
        out = io.StringIO()
        figure.savefig(out, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :]


def draw_accuracy(run: Run) -> str:
    """Accuracies by round with their intervals, and the baselines as level lines."""

    def plot(axes: Axes) -> None:
        numbers = [r.number for r in run.rounds]
        axes.axvspan(run.delivered.number - 0.3, run.delivered.number + 0.3, color="#eef4fa", lw=0, zorder=0)
        drawn = [line for line in ACCURACIES if not all(np.isnan(r.row[line[0]]) for r in run.rounds)]
        for i, (column, name, colour, mark, style) in enumerate(drawn):
            shift = 0.06 * (i - (len(drawn) - 1) / 2)  # or intervals would hide one another
            _accuracy_line(axes, run.rounds, column, shift, color=colour, marker=mark, ls=style, label=name)
        for key, name, dashes in BASELINES:
            baseline = run.delivered.notes.get("baselines", {}).get(key)
            if baseline is not None:
                axes.axhline(baseline, color="#9b2c2c", ls=dashes, lw=1.2, label=f"baseline: {name}")
        _round_axis(axes, numbers)
        axes.set_ylabel("share right")

    return draw(plot, height=4.2)


def draw_comparison(runs: Sequence[Run], names: Sequence[str], column: str, title: str) -> str:
    """One accuracy of several runs by round."""

    def plot(axes: Axes) -> None:
        for i, (run, name) in enumerate(zip(runs, names, strict=True)):
            look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)]}
            shift = 0.3 * ((i + 0.5) / len(runs) - 0.5)
            _accuracy_line(axes, run.rounds, column, shift, ls="-", label=_cut(name), **look)
        _round_axis(axes, sorted({r.number for run in runs for r in run.rounds}))
        axes.set_ylabel(f"share right, {title}")

    columns = 2 if len(runs) > 3 else 1
    return draw(plot, height=3.5 + 0.2 * -(-len(runs) // columns), legend_columns=columns)


def draw_flow(run: Run) -> str:
    """What became of the pool in every round, as bars."""

    def plot(axes: Axes) -> None:
        rounds = [r for r in run.rounds if r.audit is not None]
        numbers = np.array([r.number for r in rounds])
        bottom = np.zeros(len(rounds))
        for name, colour, counts in flow_counts(run, rounds):
            axes.bar(numbers, counts, 0.6, bottom, color=colour, label=name, edgecolor="white", lw=0.6)
            bottom += counts
        _round_axis(axes, list(numbers))
        axes.grid(False)
        axes.set_ylabel("pool pairs")

    return draw(plot, height=3.9)


def flow_counts(run: Run, rounds: Sequence[Round]) -> list[tuple[str, str, np.ndarray]]:
    """Name, colour and pairs by round of each of the four parts of the pool."""
    flows = []
    for one in rounds:
        before = run.before(one)
        flows.append(flow_of(one.audit, before.audit if before else None))  # type: ignore[arg-type]
    return [
        ("kept", ACCENT, np.array([(f.kept & ~f.flipped).sum() for f in flows])),
        ("kept, label flipped", GOLD, np.array([(f.kept & f.flipped).sum() for f in flows])),
        ("left out, label flipped", SAND, np.array([(~f.kept & f.flipped).sum() for f in flows])),
        ("left out", PALE, np.array([(~f.kept & ~f.flipped).sum() for f in flows])),
    ]


def draw_confidence(run: Run) -> str:
    """How sure the delivered round is of its labels, and which it kept; round 0 as an outline."""

    def plot(axes: Axes) -> None:
        shown, edges = run.delivered, np.linspace(0.5, 1, 21).tolist()
        confidence, kept = confidence_of(shown.audit), shown.audit["kept"]  # type: ignore[arg-type, index]
        axes.hist(
            [confidence[kept], confidence[~kept]], edges, stacked=True, color=[ACCENT, PALE], label=["kept", "left out"]
        )
        first = run.rounds[0]
        if first is not shown and first.audit is not None:
            axes.hist(confidence_of(first.audit), edges, histtype="step", color=INK, lw=1.1, label="all of round 0")
        axes.set(xlabel="confidence, max(P, 1 - P)", ylabel="pool pairs", xlim=(0.5, 1))

    return draw(plot, height=3.6, legend_columns=3)


def draw_reliability(shown: Round) -> str:
    """Right answers against stated confidence, on the seed and out of fold."""

    def plot(axes: Axes) -> None:
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, lw=1, ls="--", label="as sure as it may be")
        bins = shown.notes["reliability"]
        x = np.array([b["confidence"] for b in bins])
        y = np.array([b["right"] / b["pairs"] for b in bins])
        low, high = np.array([wilson_interval(b["right"], b["pairs"]) for b in bins]).T
        errors = np.maximum([y - low, high - y], 0)  # at shares of 0 and 1 rounding may leave -1e-17
        axes.errorbar(x, y, errors, color=ACCENT, marker="o", ls="-", lw=1.5, capsize=3, label="seed, out of fold")
        for b, at, top in zip(bins, x, high, strict=True):
            axes.annotate(str(b["pairs"]), (at, top), (0, 4), textcoords="offset points", ha="center", fontsize=9)
        axes.set(
            xlabel="stated confidence", ylabel="share right", xlim=(0.48, 1.02), ylim=(min(0.45, *low) - 0.02, 1.08)
        )
        axes.grid(True, color=PALE, lw=0.6)
        axes.set_axisbelow(True)

    return draw(plot, height=3.7)


def draw_length(shown: Round) -> str:
    """Difference of the rewards against difference of the lengths, and its mean over tenths of the pairs."""

    def plot(axes: Axes) -> None:
        difference, margin = np.array(shown.notes["length"], float).T
        axes.axhline(0, color=MUTED, lw=0.8)
        axes.axvline(0, color=MUTED, lw=0.8)
        axes.plot(difference, margin, "o", color=ACCENT, ms=3, alpha=0.4, mew=0, label="pool pairs")
        tenths = [t for t in np.array_split(np.argsort(difference, kind="stable"), 10) if len(t) > 1]
        means = np.array([(difference[t].mean(), margin[t].mean()) for t in tenths]).reshape(-1, 2)
        axes.plot(means[:, 0], means[:, 1], color=GOLD, marker="o", ms=4, lw=1.8, label="mean of each tenth")
        axes.set(xlabel="tokens of a minus tokens of b", ylabel="reward of a minus reward of b")

    return draw(plot, height=3.6)


def draw_loss(run: Run) -> str:
    """Training loss by optimizer step."""

    def plot(axes: Axes) -> None:
        steps, losses = run.losses.T
        axes.plot(steps, losses, color=ACCENT, lw=1.2)
        for end in run.round_ends[:-1]:
            axes.axvline(end, color=MUTED, lw=1, ls=":")
        axes.set(xlabel="optimizer step", ylabel="training loss", ylim=(min(0, losses.min()), None))
        axes.grid(True, axis="y", color=PALE, lw=0.6)

    return draw(plot, height=3.6)


def _accuracy_line(axes: Axes, rounds: Sequence[Round], column: str, shift: float, **look: str) -> None:
    x = np.array([r.number + shift for r in rounds])
    y = np.array([r.row[column] for r in rounds])
    bounds = [r.interval(column) or (value, value) for r, value in zip(rounds, y, strict=True)]
    low, high = np.array(bounds).T
    errors = np.maximum([y - low, high - y], 0)  # rounding of the table may leave -1e-17
    axes.errorbar(x, y, errors, ms=5, lw=1.6, elinewidth=1, capsize=2.5, **look)  # type: ignore[arg-type]


def _round_axis(axes: Axes, numbers: Sequence[int]) -> None:
    axes.set_xlabel("round")
    axes.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
    axes.set_xticks(numbers[:: -(-len(numbers) // 12)])
    axes.grid(True, axis="y", color=PALE, lw=0.6)
    axes.set_axisbelow(True)


def _cut(name: str) -> str:
    return name if len(name) <= 40 else name[:39] + "…"
