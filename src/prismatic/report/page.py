"""One page per run: what it was and reached, its alarms, its pictures in reading order."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .answer import compute_answer, of_record, tell
from .edge import draw_attention, draw_confidence, draw_gradients, draw_logits
from .lens import draw_change, draw_lens
from .losses import draw_apart, draw_forced, draw_losses
from .markup import notice, page, paragraph, picture, table
from .record import Record
from .routing import (
    draw_attention_table,
    draw_dependence,
    draw_domains,
    draw_entropy,
    draw_information,
    draw_passes,
    draw_routing_table,
    draw_weights,
)
from .style import png

FOLDER, HTML = "report", "report.html"  # in the folder of a run
BYTES = 256  # a vocabulary of this size is text


@dataclass(frozen=True)
class RaisedAlarm:
    """A failure that a run was warned of, and what to do about it."""

    name: str
    message: str
    remedy: str
    step: int
    times: int


def compute_alarms(record: Record) -> list[RaisedAlarm]:
    """Alarms in the order of their first step; one that was raised again counts as one."""
    raised = [(line["step"], line["alarm"]) for line in record.lines if "alarm" in line]
    names = [alarm["name"] for _, alarm in raised]
    found = []
    for name in dict.fromkeys(names):
        step, first = raised[names.index(name)]
        found.append(RaisedAlarm(name, first["message"], first["remedy"], step, names.count(name)))
    return found


def compute_reached(record: Record) -> dict[str, float]:
    """The last and the best validation loss, and the step of the best; empty without any."""
    steps, val_S = record.series("loss/val")
    if not np.isfinite(val_S).any():
        return {}
    best = int(np.nanargmin(val_S))
    text = record.about.get("vocab") == BYTES
    return {
        "validation loss": float(val_S[-1]),
        **({"bits per byte": float(val_S[-1]) / math.log(2)} if text else {}),
        "best validation loss": float(val_S[best]),
        "best at step": float(steps[best]),
    }


def compute_results(record: Record) -> dict[str, str]:
    """Losses at the end beside what they are to be compared with, by readable names."""
    known = {name: f"{value:.5g}" for name, value in compute_known(record).items()}
    answer = compute_answer(of_record(record))
    return answer | {name: text for name, text in known.items() if name not in answer}


def compute_known(record: Record) -> dict[str, float]:
    """What a record has beside the answer: the best, the baselines, the losses by domain."""
    results = compute_reached(record)
    baselines = record.about.get("baselines") or {}
    results |= {f"{name} (baseline)": value for name, value in baselines.items()}
    if record.about.get("bayes") is not None:
        results["least possible"] = record.about["bayes"]
    by_domain, names = record.last("loss/domain_D"), record.about.get("domains") or []
    if by_domain is not None and len(by_domain) == len(names) > 1:  # else some were not seen
        named = zip(names, by_domain.tolist(), strict=True)
        results |= {f"validation loss on {name}": loss for name, loss in named}
    return results


def compute_sentences(record: Record) -> list[str]:
    """What the results say, and the command that settles what they do not."""
    settle = record.about.get("settle")
    return tell(of_record(record)) + ([f"To settle it: {settle}"] if settle else [])


def overview(record: Record) -> str:
    """The page's head: facts, what was found, results, alarms with their remedies."""
    about = record.about
    keys = ("router", "level", "views", "passes", "task", "dtype")
    facts = " · ".join(f"{key} {about[key]}" for key in keys if about.get(key) not in (None, ""))
    alarms = [alarm_html(alarm) for alarm in compute_alarms(record)]
    calm = notice("calm", "No alarm.", "None of the failures that are watched for was seen.")
    rows = list(compute_results(record).items())
    results = table(("result", "nats per token, if not named"), rows) if rows else ""
    said = [paragraph(sentence, "answer") for sentence in compute_sentences(record)]
    return "\n".join([paragraph(facts, "facts"), *said, results, *(alarms or [calm])])


def described(record: Record) -> str:
    """The same as Markdown, and where the pictures are."""
    alarms = [
        f"**Alarm: {alarm.name}.** Step {alarm.step}: {alarm.message}. What to do: {alarm.remedy}."
        for alarm in compute_alarms(record)
    ]
    rows = [f"| {name} | {value} |" for name, value in compute_results(record).items()]
    head = ["| result | nats per token, if not named |", "|---|---|"]
    results = ["\n".join(head + rows)] if rows else []
    where = "All pictures, in reading order: `report/report.html` among the artifacts."
    said = compute_sentences(record)
    return "\n\n".join([*said, *results, *(alarms or ["**No alarm.**"]), where])


def alarm_html(alarm: RaisedAlarm) -> str:
    """An alarm: at which step it came first, how often, and what to do."""
    when = f"step {alarm.step}" + (f", {alarm.times} times" if alarm.times > 1 else "")
    remedy = f"What to do: {alarm.remedy}"
    return notice("alarm", f"Alarm: {alarm.name}.", f"{when}: {alarm.message}", remedy)


@dataclass(frozen=True)
class PagePicture:
    """A picture of the page: its file's name, what draws it and how it is read."""

    name: str
    draw: Callable[[Record], Figure]
    reading: str


CHAPTERS: dict[str, tuple[PagePicture, ...]] = {
    "Does it learn?": (
        PagePicture(
            "losses", draw_losses,
            "The orange lines need no training: they are what counting tokens, or pairs of them, "
            "achieves. A validation curve that turns up while training falls is overfitting.",
        ),
        PagePicture(
            "confidence", draw_confidence,
            "Left: a long tail to the right means a few very bad guesses. Right: points on the "
            "diagonal mean that confidence is earned; below it the model is too sure. A larger "
            "point stands for more tokens.",
        ),
    ),
    "Do the views differ?": (
        PagePicture(
            "forced", draw_forced,
            "Each view alone, the whole model with one-hot routing, on a few held-out sequences. "
            "Right: above 0 a view is worse than the clean one. Curves that lie on one another "
            "mean that the views hardly differ.",
        ),
        PagePicture(
            "apart", draw_apart,
            "Left: 0 bits means that all views predict the same. Right: what the geometric mean of "
            "all views gains over the best of them. Above 0 their differences are of use, below 0 "
            "they only add noise.",
        ),
    ),
    "Does routing adapt?": (
        PagePicture(
            "weights", draw_weights,
            "Lines that stay at the grey one mean that routing has not left uniform. A line near 1 "
            "means that it has collapsed to that view, one near 0 that the view is not used.",
        ),
        PagePicture(
            "entropy", draw_entropy,
            "1 is uniform use of the views, 0 a single one. An untrained router is near 1, too: "
            "a high entropy alone does not show that routing adapts.",
        ),
        PagePicture(
            "dependence", draw_dependence,
            "0 is the same routing for every input. Routing that has learned to tell inputs apart "
            "rises above its null, a gate that never trained and sees the same inputs.",
        ),
        PagePicture(
            "information", draw_information,
            "Routing that has learned the domains rises above its null, a gate that never trained. "
            "The null is not at 0, since different text excites any gate differently.",
        ),
        PagePicture(
            "domains", draw_domains,
            "Rows that differ from one another more on the left than on the right mean that "
            "routing has learned to treat domains differently.",
        ),
        PagePicture(
            "passes", draw_passes,
            "Thin lines apart from one another: routing depends on the input, a little so even for "
            "an untrained gate (see above). A thick line that moves: it depends on the pass, which "
            "separate blocks do by themselves.",
        ),
        PagePicture(
            "routing_table", draw_routing_table,
            "Stripes: routing depends on one token. A pattern that is neither rows nor columns: "
            "on both. Whether more than an untrained gate does, the null above says.",
        ),
        PagePicture(
            "attention_table", draw_attention_table,
            "One colour: attention does not depend on the tokens, and the model cannot pass the "
            "floor of additive predictions by attention.",
        ),
    ),
    "Is training near a numerical edge?": (
        PagePicture(
            "logits", draw_logits,
            "Left: bars span quantiles, the white dot is the median. Logits past the dotted line "
            "count for nothing in a softmax. Past the dashed one the dtype of the weights has no "
            "exact exponential for them, and without the subtraction it would overflow.",
        ),
        PagePicture(
            "attention", draw_attention,
            "Entropy near 0, or gain near ln n: every position looks at one other. A rising share "
            "of logits out of range means that gradients through attention are dying, a rising "
            "log-partition that logits grow as a whole.",
        ),
        PagePicture(
            "gradients", draw_gradients,
            "Steady lines are sound. Spikes, a steady rise, or one tier or block far from the "
            "others point to where training is unstable.",
        ),
    ),
    "What does the lens do?": (
        PagePicture(
            "lens", draw_lens,
            "Left: the factor that the focal pattern gives to each position. Right: how much the "
            "selected weights change. A lens that is narrow against a matrix leaves it as it is.",
        ),
        PagePicture(
            "change", draw_change,
            "Points far to the left are tensors that a view leaves as good as untouched, a row "
            "without points one that no view changes. Where all matrices lie below 0.02 the views "
            "can hardly differ.",
        ),
    ),
}  # fmt: skip


def leading(files: Sequence[Path]) -> list[Path]:
    """Of the files of a report, the picture that each chapter begins with."""
    first = {pictures[0].name for pictures in CHAPTERS.values()}
    return [path for path in files if path.suffix == ".png" and path.stem in first]


def write_report(record: Record, folder: Path, name: str) -> list[Path]:
    """Draw what a record holds: `<picture>.png` for each, and `report.html` with all of them.

    Returns the files. A picture of which the run has nothing is a sentence in the page instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts, written = [overview(record)], []
    for question, pictures in CHAPTERS.items():
        parts.append(f"<h2>{question}</h2>")
        for one in pictures:
            figure = one.draw(record)
            text = " ".join(text.get_text() for text in figure.texts)
            if figure.axes:
                path = folder / f"{one.name}.png"
                path.write_bytes(png(figure))
                parts.append(picture(path.read_bytes(), figure.get_suptitle(), one.reading))
                written.append(path)
            else:
                parts.append(
                    paragraph(f"No picture of {one.name.replace('_', ' ')}: {text}", "absent")
                )
    path = folder / HTML
    path.write_text(page(name, parts), encoding="utf-8")
    return [*written, path]
