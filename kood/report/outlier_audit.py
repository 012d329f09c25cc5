"""The audit of the outliers: what report.html and the terminal say of it."""

from collections.abc import Mapping
from typing import Any

from kood.report.audit_figures import SET_NAMES
from kood.report.tables import MISSING, Column, Row, Table, row, words
from kood.report.wording import number, percent

__all__ = [
    "MOST_CLASSES", "QUESTIONS", "TITLE", "fraction", "lines", "of_content", "of_diversity", "of_fidelity",
    "of_mixtures", "overview", "summary",
]  # fmt: skip

TITLE = "Are these outliers any good?"

#: Part of the audit -> question and what each verdict answers.
QUESTIONS: dict[str, tuple[str, dict[str, str]]] = {
    "content": ("Do the samples show their classes?", {"shown": "yes", "weak": "no", "unjudged": "cannot be told"}),
    "mixtures": (
        "Do the mixtures show their parents?",
        {"both": "yes", "one": "no: one at a time", "other": "no: other classes"},
    ),
    "diversity": (
        "Are they new images?",
        {"new": "yes", "memorised": "no: near-copies", "repeated": "no: repetitions"},
    ),
    "fidelity": ("Do they look like real images?", {}),
    "shortcut": (
        "Does the detector look at content?",
        {
            "passed": "yes",
            "slight": "mostly",
            "reversed": "yes",
            "undecided": "cannot be told",
            "failed": "no: it spots generated images",
        },
    ),
}
#: A confusion figure of more classes cannot be read; nor can a table of each.
MOST_CLASSES = 20
#: Rows of the table of classes where there are more than that.
WORST = 10


def fraction(value: float | None) -> str:
    """A figure with two decimals."""
    return MISSING if value is None else f"{value:.2f}"


def overview(audit: Mapping[str, Any]) -> Table:
    """The summary as a table."""
    columns = (words("question"), Column("answer", words=True, strong=True), words("figures"))
    return Table(columns, [row(*texts) for texts in summary(audit)], TITLE)


def summary(audit: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Question, answer and figures of each part of an audit, as plain text.

    Args:
        audit: "outlier_audit" of a result.
    """
    content, diversity, fidelity = audit["content"], audit["diversity"], audit["fidelity"]
    pure, real, mixed = content["pure"], content["held_out"], content["mixtures"]
    told = {"content": f"{percent(pure['share'])}% named right; real images: {percent(real['share'])}%"}
    if mixed:
        told["mixtures"] = (
            f"parents hold {percent(mixed['all_parents'])}% of the judge's belief; its entropy is "
            f"{fraction(mixed['entropy'])}, on single-class samples {fraction(pure['entropy'])}"
        )
    sets = diversity["sets"]
    shares = [f"{SET_NAMES[name]} {percent(one['memorised']['share'])}%" for name, one in sets.items()]
    told["diversity"] = "near-copies of training images: " + ", ".join(shares)
    one, training = fidelity["sets"]["pure"], fidelity["sets"]["train"]
    told["fidelity"] = (
        f"FID {number(one['fid'])}, KID {number(one['kid'])}; training images: FID {number(training['fid'])}, "
        f"KID {number(training['kid'])}"
    )
    shortcut = audit["shortcut"]
    if shortcut:
        low, high = shortcut["interval"]
        told["shortcut"] = (
            f"AUROC {fraction(shortcut['auroc'])} ({fraction(low)} to {fraction(high)}) by "
            f"{shortcut['score']}; 0.5 is right"
        )
    verdicts = {part: (audit.get(part) or {}).get("verdict") for part in QUESTIONS}
    verdicts["mixtures"] = content["mixtures_verdict"]
    rows = []
    for part, figures in told.items():
        question, answers = QUESTIONS[part]
        answer = answers.get(str(verdicts[part]), "cannot be told")
        rows.append((question, _how_far(one["fid"], training["fid"]) if part == "fidelity" else answer, figures))
    if not shortcut:
        rows.append((QUESTIONS["shortcut"][0], "not tested", ""))
    return rows


def _how_far(samples: float, training: float) -> str:
    """Two FIDs in words; below a fifth more they are called alike, which is about what chance makes of them."""
    if samples <= 1.2 * training:
        return "as near as training images"
    if training <= 0:
        return "farther than training images"
    return f"{samples / training:.1f} times as far as training images"


def lines(audit: Mapping[str, Any]) -> list[str]:
    """The audit in a few lines for a terminal: each question with its answer and its figures, then the shortcut."""
    told = [
        f"{question} {answer[0].upper()}{answer[1:]}" + (f" ({figures})." if figures else ".")
        for question, answer, figures in summary(audit)
    ]
    shortcut = audit["shortcut"]
    return [*told, shortcut["sentence"]] if shortcut else told


def of_content(audit: Mapping[str, Any]) -> Table:
    """What the judge calls the samples of each class, or of many those that it knows least."""
    content, names = audit["content"], audit["class_names"]
    pure, real = content["pure"], content["held_out"]
    found = list(zip(names, pure["per_class"], real["per_class"], strict=True))
    note = "Percent. Confidence: the judge's mean belief in the intended class."
    if len(names) > MOST_CLASSES:
        found = sorted((one for one in found if one[1]["n"]), key=lambda one: one[1]["share"])[:WORST]
        note += f" The {len(found)} classes that are recognised least."

    def line(name: str, made: Mapping[str, Any], true: Mapping[str, Any], kind: str = "") -> Row:
        shares = (made["share"], made["confidence"], true["share"])
        return row(name, str(made["n"]), *map(percent, shares), kind=kind)

    rows = [*(line(*one) for one in found), line("all", pure, real, "mean")]
    heads = ("samples", "named\nright", "confidence", "real images\nnamed right")
    return Table((words("made for"), *map(Column, heads)), rows, notes=(note,))


def of_mixtures(audit: Mapping[str, Any]) -> Table:
    """What the judge believes of the mixtures, by the share of their first parent."""
    content = audit["content"]
    mixed = content["mixtures"]

    def line(name: str, one: Mapping[str, Any], odds: str, kind: str = "") -> Row:
        shares = [percent(one[key]) for key in ("first", "second", "all_parents", "top", "on_top")]
        return row(name, str(one["n"]), *shares, fraction(one["entropy"]), odds, kind=kind)

    rows = [line(f"{one['low']:.2f} to {one['high']:.2f}", one, fraction(one["log_odds"])) for one in mixed["by_share"]]
    compared = "; ".join(
        f"{SET_NAMES[name]}: entropy {fraction(content[name]['entropy'])}, log-odds of the judge's first class "
        f"against its second {fraction(content[name]['top_log_odds'])}"
        for name in ("held_out", "pure", "mixtures")
    )
    note = (
        "λ is the share of the first parent, the class with the most of the mixture. Belief of the judge in percent: "
        "in the first and the second parent, in all parents, and in as many classes of its own choice. On top: "
        "mixtures whose parents all stand before every other class. Entropy in nats: 0 is certain. Log-odds: of the "
        f"first parent against the second, 0 is undecided. To compare, {compared}."
    )
    heads = ("mixtures", "first", "second", "all\nparents", "own\nchoice", "on top", "entropy", "log-odds")
    columns = (words("λ"), *map(Column, heads))
    return Table(columns, (*rows, line("all mixtures", mixed, "", "mean")), notes=(note,))


def of_diversity(audit: Mapping[str, Any]) -> Table:
    """How near each set is to the training images and to itself."""
    diversity = audit["diversity"]
    rows = [
        row(
            SET_NAMES[name], str(one["n"]), number(one["to_training"]["median"]), percent(one["nearer"]),
            percent(one["memorised"]["share"]), str(one["copies"]), number(one["among"]["median"]),
            percent(one["near_duplicates"]["share"]), str(one["duplicates"]),
        )
        for name, one in diversity["sets"].items()
    ]  # fmt: skip
    heads = (
        "images", "median to\ntraining", "nearer,\n%", "near-\ncopies, %", "exact\ncopies", "median to\neach other",
        "near\nduplicates, %", "exact\nduplicates",
    )  # fmt: skip
    searched = max(one["searched"] for one in diversity["sets"].values())
    size = diversity["sets"]["held_out"]["among"]["n"]
    note = (
        f"Distances: {diversity['unit']}, of up to {searched} images a set to the nearest training image, and of "
        f"{size} to the nearest of their own set. Nearer: nearer to a training image than 99% of the real "
        "held-out images are. Near-copy: less than a third as far from the nearest training image as from the second "
        "nearest, or equal to it. Near duplicate: nearer to another of its set than 99% of the real ones. Smooth "
        "images are near to everything; that alone makes no copy."
    )
    return Table((words("set"), *map(Column, heads)), rows, notes=(note,))


def of_fidelity(audit: Mapping[str, Any]) -> Table:
    """How far each set lies from real images."""
    fidelity = audit["fidelity"]
    rows = []
    for name, one in fidelity["sets"].items():
        error = one["kid_standard_error"]
        kid = number(one["kid"]) + ("" if error is None else f" ± {number(error)}")
        rows.append(row(SET_NAMES[name], str(one["n"]), number(one["fid"]), kid))
    note = (
        f"How far a set lies from {fidelity['n_held_out']} real held-out images as a whole, in the feature space "
        f"“{fidelity['feature_space']}”, {fidelity['dimensions']} dimensions; 0 is alike, lower is better. KID ± its "
        "standard error. Figures of another feature space, such as published ones, do not compare."
    )
    return Table((words("set"), *map(Column, ("images", "FID", "KID"))), rows, notes=(note,))
