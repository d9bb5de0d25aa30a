"""What the films do to the answers: how long they are, where in them the moment lies, and how unlike the training they look."""

from __future__ import annotations

import math
from collections.abc import Sequence

from revision_jax.data.synthetic.script import DURATION_S
from revision_jax.data.synthetic.style import Style
from revision_jax.experiments.bench import HOUR_S, Bench, Films, searched
from revision_jax.experiments.charts import Heat
from revision_jax.experiments.core import Cell, Experiment, Measured
from revision_jax.experiments.needle import Needles
from revision_jax.experiments.rows import Row, bars, over

# In lengths of the films that other experiments ask about, an hour unless told otherwise.
LENGTHS = (1, 1 / 6, 1 / 2, 3, 9)
REPEATED = 10
NEEDLE_LENGTHS, DEPTHS = (1 / 6, 1, 3, 9), (0.0, 0.25, 0.5, 0.75, 1.0)
FEATURES = "Films of repeated features have no pictures: there the patch level is left out."


def spelled(seconds: float) -> str:
    """10 min, 1 h, 2.5 h."""
    return f"{seconds / HOUR_S:g} h" if seconds >= HOUR_S else f"{seconds / 60:g} min"


# -------------------------------------------------------------------------------------------------------------------------- length


def length(bench: Bench) -> list[Cell]:
    """As many hours of film at each length, an hour's first; then one film repeated, with one target in all of it."""
    lengths = dict.fromkeys(max(DURATION_S[0], factor * bench.duration_s) for factor in LENGTHS)
    cells = [searched(spelled(seconds), bench.lasting(seconds), at=(seconds / 60,)) for seconds in lengths]
    repeated = Needles(bench.films, REPEATED * bench.duration_s, each=2)
    return [*cells, searched(f"{spelled(repeated.length_s)}, one film repeated, one target", repeated)]


LENGTH = Experiment(
    "length", "How do answers and their price change from ten minutes to nine hours, and in a film repeated to ten hours with one target?", length,
    ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU", "RejF1", "AUROC", "window_recall", "survivors_share"),
    over("minutes of film", "R1@0.5", "AUROC", "seconds", logarithmic=True),
    notes=(
        "Films of other lengths are other films with other questions; each has 24 an hour, at least six. A long film holds more look-alikes, too.",
        "The repeated film is the film without the target, over and over, and the film's target once, at depths spread evenly over the questions; it is the"
        f" question of ReVisionLLM's longest films, asked about the rendered world. {FEATURES}",
    ),
)  # fmt: skip

# -------------------------------------------------------------------------------------------------------------------------- needle


def needle(bench: Bench) -> list[Cell]:
    cells = []
    for factor in NEEDLE_LENGTHS:
        for depth in DEPTHS:
            seconds = factor * bench.duration_s
            cells.append(searched(f"{spelled(seconds)}, {100 * depth:g} % deep", Needles(bench.films, seconds, depth), at=(seconds, depth)))
    return cells


def heat(found: Sequence[Row]) -> Heat:
    """R1@0.5 by depth and length."""
    lengths, depths = (sorted({row.at[axis] for row in found}) for axis in (0, 1))
    value = {row.at: row.figures.get("R1@0.5", math.nan) for row in found}
    values = tuple(tuple(value.get((seconds, depth), math.nan) for seconds in lengths) for depth in depths)
    return Heat(tuple(spelled(seconds) for seconds in lengths), tuple(f"{100 * depth:g} %" for depth in depths), values, ("length", "R1@0.5 by depth"))


NEEDLE = Experiment(
    "needle", "Does it matter where in a long film the moment lies?", needle, ("R1@0.5", "mIoU", "window_recall"), heat,
    reference=f"{spelled(HOUR_S)}, 50 % deep",
    notes=(f"One question with one moment of every film; the moment, cut out, lies in its film's rest, repeated to the length. {FEATURES}",),
)  # fmt: skip

# -------------------------------------------------------------------------------------------------------------------- distribution

STYLES = {
    "coloured grounds": Style(grounds="coloured"), "tiled grounds": Style(grounds="tiles"), "paler colours": Style(palette="pale"),
    "deeper colours": Style(palette="deep"), "1 frame a second": Style(fps=1), "25 frames a second": Style(fps=25), "compressed hard (CRF 38)": Style(crf=38),
    "compressed to ruins (CRF 48)": Style(crf=48),
}  # fmt: skip


def distribution(bench: Bench) -> list[Cell]:
    films = bench.films
    others = {name: Films(films.count, films.duration_s, films.split, style) for name, style in STYLES.items()}
    others["unseen pairs of colour and shape"] = Films(films.count, films.duration_s, "composition")
    answered = lambda bench: Measured([outcome for asked in others.values() for outcome in bench.ask(bench.model(), asked)])  # once more, from what is kept
    together = Cell("all but the first together", {"films": [asked.settings() for asked in others.values()], "without": [], "overrides": []}, answered)
    return [searched("as trained", films), *(searched(name, asked) for name, asked in others.items()), together]


DISTRIBUTION = Experiment(
    "distribution", "What is left of answers and confidences when films do not look as in training?", distribution,
    ("R1@0.5", "R1@0.7", "mIoU", "RejF1", "AUROC", "ECE"), bars("R1@0.5", "AUROC", "ECE"),
    notes=("The same scripts and questions, shown otherwise (`data/synthetic/style.py`); unseen pairs are the split `composition`, with its own questions.",),
)  # fmt: skip
