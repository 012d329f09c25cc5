"""The audit of the outliers as a section of report.html and as lines of the terminal."""

from collections.abc import Mapping
from typing import Any

from kood.report import audit_figures
from kood.report.audit_figures import SET_NAMES
from kood.report.fragments import escaped, figure, row, table
from kood.report.wording import number, percent
from kood.text import clean

__all__ = ["TITLE", "lines", "section", "summary"]

TITLE = "Are these outliers any good?"

#: Part of the audit -> question and what each verdict answers.
QUESTIONS: dict[str, tuple[str, dict[str, str]]] = {
    "content": (
        "Do the samples show their classes?",
        {"shown": "yes", "weak": "no", "unjudged": "cannot be told"},
    ),
    "mixtures": (
        "Do the mixtures show both parents?",
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


def _fraction(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


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
            f"{_fraction(mixed['entropy'])}, on single-class samples {_fraction(pure['entropy'])}"
        )
    sets = diversity["sets"]
    shares = [f"{SET_NAMES[name]} {percent(one['memorised']['share'])}%" for name, one in sets.items()]
    told["diversity"] = "near-copies of training images: " + ", ".join(shares)
    one, training = fidelity["sets"]["pure"], fidelity["sets"]["train"]
    told["fidelity"] = (
        f"FID {number(one['fid'])}, KID {number(one['kid'])}; real images: FID {number(training['fid'])}, "
        f"KID {number(training['kid'])}"
    )
    shortcut = audit.get("shortcut")
    if shortcut:
        low, high = shortcut["interval"]
        told["shortcut"] = (
            f"AUROC {_fraction(shortcut['auroc'])} ({_fraction(low)} to {_fraction(high)}) by "
            f"{clean(shortcut['score'])}; 0.5 is right"
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


def _how_far(samples: float, real: float) -> str:
    """Two FIDs in words; below a fifth more they are called alike, which is about what chance makes of them."""
    if samples <= 1.2 * real:
        return "as near as real ones"
    return f"{samples / real:.1f} times as far as real ones" if real > 0 else "farther than real ones"


def lines(audit: Mapping[str, Any]) -> list[str]:
    """The audit in a few lines for a terminal: each question with its answer and its figures, then the shortcut."""
    told = [
        f"{question} {answer[0].upper()}{answer[1:]}" + (f" ({figures})." if figures else ".")
        for question, answer, figures in summary(audit)
    ]
    shortcut = audit.get("shortcut")
    return [*told, clean(shortcut["sentence"])] if shortcut else told


def _said(part: Mapping[str, Any]) -> str:
    return f"<p>{escaped(' '.join(part['sentences']))}</p>"


def _summary_table(audit: Mapping[str, Any]) -> str:
    rows = [
        f'<tr><th scope="row" class="name">{question}</th><td class="name"><strong>{answer}</strong></td>'
        f'<td class="name">{escaped(told)}</td></tr>'
        for question, answer, told in summary(audit)
    ]
    return table(["question", "answer", "figures"], rows, labels=3)


def _content(audit: Mapping[str, Any]) -> str:
    content, names = audit["content"], audit["class_names"]
    pure, real, mixed = content["pure"], content["held_out"], content["mixtures"]
    found = list(zip(names, pure["per_class"], real["per_class"], strict=True))
    note = "Percent. Confidence: the judge's mean belief in the intended class."
    if len(names) > MOST_CLASSES:
        found = sorted((one for one in found if one[1]["n"]), key=lambda one: one[1]["share"])[:WORST]
        note += f" The {len(found)} classes that are recognised least."
    rows = [
        row(
            escaped(name),
            [escaped(made["n"]), percent(made["share"]), percent(made["confidence"]), percent(true["share"])],
        )
        for name, made, true in found
    ]
    rows.append(
        row(
            "all",
            [escaped(pure["n"]), percent(pure["share"]), percent(pure["confidence"]), percent(real["share"])],
            "mean",
        )
    )
    head = ["made for", "samples", "named<br>right", "confidence", "real images<br>named right"]
    parts = [table(head, rows), f'<p class="note">{escaped(note)}</p>']
    if len(names) <= MOST_CLASSES:
        parts.append(
            figure(
                audit_figures.confusion(pure["confusion"], names),
                "What the judge calls the samples made for each class",
                "Percent of the samples made for a class; on the diagonal the judge agrees.",
            )
        )
    if mixed:
        parts.append(_mixtures(content))
    return "".join(parts)


def _mixtures(content: Mapping[str, Any]) -> str:
    mixed = content["mixtures"]
    keys = ("first", "second", "all_parents", "top", "on_top")

    def cells(one: Mapping[str, Any], odds: str) -> list[str]:
        return [escaped(one["n"]), *(percent(one[key]) for key in keys), _fraction(one["entropy"]), odds]

    rows = [
        row(f"{one['low']:.2f} to {one['high']:.2f}", cells(one, _fraction(one["log_odds"])))
        for one in mixed["by_share"]
    ]
    rows.append(row("all mixtures", cells(mixed, ""), "mean"))
    compared = "; ".join(
        f"{SET_NAMES[name]}: entropy {_fraction(content[name]['entropy'])}, log-odds of the judge's first class "
        f"against its second {_fraction(content[name]['top_log_odds'])}"
        for name in ("held_out", "pure", "mixtures")
    )
    note = (
        "λ is the share of the first parent, the class with the most of the mixture. Belief of the judge in percent: "
        "in the first and the second parent, in all parents, and in as many classes of its own choice. On top: "
        "mixtures whose parents all stand before every other class. Entropy in nats: 0 is certain. Log-odds: of the "
        f"first parent against the second, 0 is undecided. To compare, {compared}."
    )
    head = ["λ", "mixtures", "first", "second", "all<br>parents", "own<br>choice", "on top", "entropy", "log-odds"]
    parts = [table(head, rows), f'<p class="note">{escaped(note)}</p>']
    if len(mixed["by_share"]) > 2:
        parts.append(
            figure(
                audit_figures.parents_mass(mixed["by_share"]),
                "The judge's belief in the parents against their shares",
                "Where the judge sees the mixtures as they were made, its belief follows the dotted lines; a judge "
                "that is sure of itself goes from one parent to the other more steeply.",
            )
        )
    return "".join(parts)


def _diversity(audit: Mapping[str, Any]) -> str:
    diversity = audit["diversity"]
    rows = [
        row(
            SET_NAMES[name],
            [
                escaped(one["n"]),
                number(one["to_training"]["median"]),
                percent(one["nearer"]),
                percent(one["memorised"]["share"]),
                escaped(one["copies"]),
                number(one["among"]["median"]),
                percent(one["near_duplicates"]["share"]),
                escaped(one["duplicates"]),
            ],
        )
        for name, one in diversity["sets"].items()
    ]
    head = [
        "set", "images", "median to<br>training", "nearer,<br>%", "near-<br>copies, %", "exact<br>copies",
        "median to<br>each other", "near<br>duplicates, %", "exact<br>duplicates",
    ]  # fmt: skip
    searched = max(one["searched"] for one in diversity["sets"].values())
    size = diversity["sets"]["held_out"]["among"]["n"]
    note = (
        f"Distances: {diversity['unit']}, of up to {searched} images a set to the nearest training image, and of "
        f"{size} to the nearest of their own set. Nearer: nearer to a training image than 99% of the real "
        "held-out images are. Near-copy: less than a third as far from the nearest training image as from the second "
        "nearest, or equal to it. Near duplicate: nearer to another of its set than 99% of the real ones. Smooth "
        "images are near to everything; that alone makes no copy."
    )
    parts = [table(head, rows), f'<p class="note">{escaped(note)}</p>']
    parts.append(
        figure(
            audit_figures.neighbour_distances(diversity),
            "Histograms of the distance to the nearest training image",
            "Shares of each set. Copies lie at 0; right of the dotted line lie 99% of the real held-out images.",
        )
    )
    return "".join(parts)


def _fidelity(audit: Mapping[str, Any]) -> str:
    fidelity = audit["fidelity"]
    rows = []
    for name, one in fidelity["sets"].items():
        error = one["kid_standard_error"]
        kid = number(one["kid"]) + ("" if error is None else f" ± {number(error)}")
        rows.append(row(SET_NAMES[name], [escaped(one["n"]), number(one["fid"]), kid]))
    note = (
        f"How far a set lies from {fidelity['n_held_out']} real held-out images as a whole, in the feature space "
        f"“{fidelity['feature_space']}”, {fidelity['dimensions']} dimensions; 0 is alike, lower is better. KID ± its "
        "standard error. Figures of another feature space, such as published ones, do not compare."
    )
    return table(["set", "images", "FID", "KID"], rows) + f'<p class="note">{escaped(note)}</p>'


def _shortcut(shortcut: Mapping[str, Any] | None) -> str:
    if not shortcut:
        return "<p>This detector was not tested.</p>"
    low, high = shortcut["interval"]
    words = (
        f"The samples made for a single class belong to what the detector knows, so it should not be able to tell "
        f"them from real images. Its {shortcut['score']} score ranks a sample as more out-of-distribution than a real "
        f"held-out image in {percent(shortcut['auroc'])}% of cases, ties counting half: an AUROC of "
        f"{_fraction(shortcut['auroc'])}, with {100 * shortcut['level']:g}% confidence between {_fraction(low)} and "
        f"{_fraction(high)} ({shortcut['n_pure']} samples, {shortcut['n_id']} real images)."
    )
    drawn = figure(
        audit_figures.shortcut_bar(shortcut),
        f"AUROC of single-class samples as if they were out-of-distribution: {_fraction(shortcut['auroc'])}",
        "The stroke is the confidence interval; the test fails where all of it lies in the grey.",
    )
    return f"<p><strong>{escaped(shortcut['sentence'])}</strong></p><p>{escaped(words)}</p>{drawn}"


def section(audit: Mapping[str, Any] | None, *, figures: bool = True) -> str:
    """The section of the page, "" where there was no audit; everything in it escaped.

    Args:
        audit: "outlier_audit" of a result, as `kood.audit.audit` gives it and report.json holds it.
        figures: False for the short form in a page of many runs: the answers and their sentences.
    """
    if not audit:
        return ""
    intro = (
        "A falling loss says nothing about what the outliers are. Here they are asked some questions, beside real "
        "images wherever real ones can answer too. Single-class samples come from the same generator under the "
        "label of one class: they show what it can draw. Mixtures are the outliers proper."
    )
    short = f"<h2>{TITLE}</h2>{_summary_table(audit)}"
    shortcut = audit.get("shortcut")
    if not figures:
        sentence = f"<p>{escaped(shortcut['sentence'])}</p>" if shortcut else ""
        return short + sentence + "".join(_said(audit[part]) for part in ("content", "diversity", "fidelity"))
    details = {
        "shortcut": _shortcut(shortcut),
        "content": _said(audit["content"]) + _content(audit),
        "diversity": _said(audit["diversity"]) + _diversity(audit),
        "fidelity": _said(audit["fidelity"]) + _fidelity(audit),
    }
    blocks = "".join(f"<h3>{QUESTIONS[part][0]}</h3>{inner}" for part, inner in details.items())
    return f'{short}<p class="note">{intro}</p>{blocks}'
