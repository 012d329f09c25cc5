"""The words and number formats that terminal tables, figures and the page share."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kood.template import filled
from kood.text import clean, some_of

__all__ = [
    "COLUMNS", "GROUPED_NOTE", "INTERVAL_NOTE", "SMOKE", "accuracy_note", "all_notes", "all_warnings", "by_reason",
    "duration", "headings", "headline_names", "mean_std", "number", "origin", "override", "percent", "sets", "setting",
    "short_keys", "signed", "threshold_meaning", "tuned_note", "validation_note", "with_interval",
]  # fmt: skip

#: Metric key -> (name, qualifier), in the order in which they are printed.
COLUMNS = {
    "auroc": ("AUROC", ""),
    "aupr_in": ("AUPR-in", ""),
    "aupr_out": ("AUPR-out", ""),
    "fpr_at_ood_tpr": ("FPR@95", "(OOD TPR)"),
    "fpr_at_id_tpr": ("FPR@95", "(ID TPR)"),
}

INTERVAL_NOTE = "[95% confidence interval over test images, DeLong.]"
GROUPED_NOTE = (
    "The test images stand in groups and are counted as independent: these intervals are too narrow, and nothing is "
    "marked or called worse by them."
)
SMOKE = "Smoke run (--quick): it shows that everything works; its figures mean nothing."

#: A number that stands for itself: not the one in a name such as "cifar10" or "resnet-18".
_FIGURE = re.compile(r"(?<![\w.,-])\d+(?:,\d{3})*(?:\.\d+)?(?![\w-]|[.,]\d)")
#: A name and what is told of it, as in "'cat' (24% of 1000)".
_NAMED = re.compile(r"""('[^']*'|"[^"]*") \(([^()]*)\)""")
#: How many more there are than are named.
_MORE = re.compile(r" and (\d+) more$")
#: What differs between the warnings of cells that are alike: figures, or a row of names. What is only quoted is a name
#: too, and may be a number: it does not vary.
_VARIES = re.compile(
    rf"{_NAMED.pattern}(?:, {_NAMED.pattern})*(?: and \d+ more)?"
    rf"""|(?P<quoted>(?<!\w)(?:'[^']*'|"[^"]*")(?!\w))|{_FIGURE.pattern}"""
)


def _missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def percent(value: float | None) -> str:
    """A fraction as percent with one decimal, "—" where there is no figure."""
    return "—" if value is None or _missing(value) else f"{100 * value:.1f}"


def mean_std(figure: Mapping[str, Any] | None, runs: int) -> str:
    """A statistic as "mean ± std" in percent; without ± for one seed; with "(n=…)" where runs are missing in it.

    Args:
        figure: {"mean", "std", "n"} or None.
        runs: How many runs the row has.
    """
    if not figure or _missing(figure.get("mean")):
        return "—"
    text = percent(figure["mean"])
    if not _missing(figure.get("std")):
        text += f" ± {percent(figure['std'])}"
    return text if figure["n"] == runs else f"{text} (n={figure['n']})"


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """A fraction and its interval in percent, "71.3 [70.2, 72.4]"; without one where there is none."""
    if not interval or _missing(value):
        return percent(value)
    return f"{percent(value)} [{', '.join(map(percent, interval))}]"


def signed(difference: Mapping[str, Any] | None, runs: int = 0) -> str:
    """A difference in points, with its interval: "+1.9 [+0.8, +2.9] ‡", ‡ where it is significant; "—" for none; with
    "(n=…)" where it is of fewer seeds than `runs`."""
    if not difference or _missing(difference.get("mean")):
        return "—"
    text = f"{100 * difference['mean']:+.1f}"
    if not (_missing(difference.get("low")) or _missing(difference.get("high"))):
        text += f" [{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"
    text += " ‡" if difference.get("significant") else ""
    return f"{text} (n={difference['seeds']})" if difference.get("seeds", runs) < runs else text


def number(value: float | None) -> str:
    """A raw figure with four significant digits, "—" where there is none."""
    return "—" if value is None else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: "0.7 s", "12 s", "2 min 5 s", "1 h 3 min"."""
    if seconds is None or _missing(seconds):
        return "—"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def override(value: object) -> str:
    """The value of an override as a recipe's reader would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return clean(" + ".join(override(item) for item in value)) or "none"
    if isinstance(value, Mapping):
        return clean(", ".join(f"{key}={override(item)}" for key, item in value.items())) or "none"
    return "none" if value is None or value == "" else clean(value)


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Override keys -> column headings: "head.name" is "head", "head.margin" is "margin", unless that is
    taken."""
    keys = list(keys)
    # Which one of a kind it is goes by the kind's own name.
    short = {key: key.removesuffix(".name").removesuffix(".kind").rsplit(".", 1)[-1] for key in keys}
    taken = list(short.values())
    return {key: clean(key if taken.count(name) > 1 else name) for key, name in short.items()}


def headings(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The headings (see `short_keys`) of all overrides in rows or cells, in order of appearance."""
    return short_keys(dict.fromkeys(key for row in rows for key in row["cell"]))


def setting(cell: Mapping[str, Any]) -> str:
    """Overrides as one line: "head arcface, margin 0.5, seed 1"; "as the recipe says" when there are none."""
    names = short_keys(cell)
    return ", ".join(f"{names[key]} {override(value)}" for key, value in cell.items()) or "as the recipe says"


def by_reason(left_out: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Cells that a run left out, under the reasons why."""
    reasons: dict[str, list[str]] = {}
    for one in left_out:
        reasons.setdefault(clean(one["why"]), []).append(setting(one["cell"]))
    return reasons


def origin(report: Mapping[str, Any]) -> str:
    """What a run is, in one line: its seeds, backend and kood version; its device where the environment names
    it."""
    seeds = [str(seed) for seed in report.get("seeds", [])]
    device = report.get("environment", {}).get("device")
    parts = [
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}" if seeds else "",
        str(report.get("backend", "")),
        str(device or ""),
        f"kood {report['kood']}" if report.get("kood") else "",
    ]
    return clean(" · ".join(part for part in parts if part))


def sets(cell: Mapping[str, Any], kind: str) -> list[str]:
    """Names of the near or far datasets, in order."""
    return [name for name, dataset in cell.get("datasets", {}).items() if dataset.get("kind") == kind]


def threshold_meaning(cell: Mapping[str, Any]) -> str:
    """The threshold in plain words, "" where the run has none."""
    threshold = cell.get("threshold")
    if not threshold:
        return ""
    thresholds = (threshold.get("thresholds") or []) if threshold.get("by_class") else []
    values = sorted(one["value"] for one in thresholds if not _missing(one.get("value")))
    text = filled(
        "kood.report", "threshold.txt", {"number": number, "percent": percent, "some_of": some_of},
        threshold={"value": None, "calibration_images": "—", "by_class": False, **threshold}, thresholds=thresholds,
        accept=f"{100 * threshold['accept']:g}", attached=cell.get("attached"),
        values=" to ".join(dict.fromkeys(map(number, values[:1] + values[-1:]))) or "—",
        accepted=percent(threshold.get("accepted_id_test")), interval=threshold.get("accepted_id_test_interval"),
        flagged=threshold.get("flagged") or {},
    )  # fmt: skip
    return clean(text)


def accuracy_note(cell: Mapping[str, Any]) -> str:
    """How many of the in-distribution test images are given their class."""
    images = cell["id"].get("images")
    told = f"ID accuracy: {percent(cell['id'].get('accuracy'))}%"
    return told + (f" of {images} test images." if images is not None else ".")


def validation_note(cell: Mapping[str, Any]) -> str:
    """How the headline score stands on the sets it was chosen on, "" where there is no validation."""
    figures = {name: value for name, value in (cell.get("validation") or {}).items() if not _missing(value)}
    headline = cell.get("headline_score")
    if headline not in figures:
        return ""
    best = max(figures, key=lambda name: figures[name])
    standing = "the best" if figures[best] == figures[headline] else f"{clean(best)} has {percent(figures[best])}"
    own = percent(figures[headline])
    proxies = ("pixel_mixup", "patch_shuffle", "pictures")
    sets = cell.get("validation_sets") or []
    where = "the validation proxies" if {*sets} <= {*proxies} else ", ".join(map(clean, sets))
    return f"Headline score {clean(headline)}: {own} AUROC on {where}, {standing}."


def tuned_note(cell: Mapping[str, Any]) -> str:
    """Which options were chosen for which score, of how many settings and to what avail, "" where none were."""
    parts = []
    for name, one in (cell.get("tuned") or {}).items():
        tried, chosen = one["tried"], one["chosen"]
        plain = "" if chosen == name else f", as named {percent(tried.get(name))}"
        parts.append(f"{clean(chosen)} ({percent(tried[chosen])}{plain}; {len(tried)} tried)")
    return f"Options chosen by their AUROC on validation images: {', '.join(parts)}." if parts else ""


def headline_names(row: Mapping[str, Any]) -> str:
    """The headline score of an aggregated row; all of them where its seeds chose differently."""
    chosen = row["headline_score"]
    return clean(chosen if isinstance(chosen, str) else ", ".join(chosen) or "—")


def _own_warnings(report: Mapping[str, Any]) -> list[str]:
    audited = report.get("outlier_audit") or {}
    missing = [
        f"data.hold_out: the fold without {', '.join(map(repr, one['classes']))} was left out: {one['why']}"
        for one in (report.get("hold_out") or {}).get("left_out", [])
    ]
    return [clean(text) for text in (*audited.get("warnings", []), *report.get("warnings", []), *missing)]


def all_warnings(report: Mapping[str, Any]) -> list[str]:
    """The warnings of a run, those of its outlier audit first; for a matrix each once, with the number of cells that
    gave it. Those that differ in their figures alone are one, with the range of each: "AUROC 0.402 to 0.517"; so are
    those that differ in the classes or sets that they name, with all of these."""
    return _each_once(report, _own_warnings)


def all_notes(report: Mapping[str, Any]) -> list[str]:
    """What else is to be known of the data of a run; for a matrix as `all_warnings`."""
    return _each_once(report, lambda one: [clean(text) for text in one.get("notes", [])])


def _each_once(report: Mapping[str, Any], own: Callable[[Mapping[str, Any]], list[str]]) -> list[str]:
    cells = report.get("cells", [])
    alike: dict[str, dict[int, list[str]]] = {}
    for number, cell in enumerate(cells):
        for text in own(cell):
            alike.setdefault(_template(text), {}).setdefault(number, []).append(text)
    merged = [(_merged(_VARIES, sum(found.values(), []), _together), len(found)) for found in alike.values()]
    return own(report) + [f"{text} ({count} of {len(cells)} cells)" for text, count in merged]


def _template(text: str) -> str:
    """A text without what varies."""
    return _VARIES.sub(lambda found: found["quoted"] or "\0", text)


def _merged(varies: re.Pattern, texts: Sequence[str], together: Callable[[Sequence[str]], str]) -> str:
    """Texts that differ in what a pattern finds alone, as one with all that is found at each place put `together`."""
    found = zip(*([one.group() for one in varies.finditer(text)] for text in texts), strict=True)
    parts = varies.sub("\0", texts[0]).split("\0")
    return "".join(part + own for part, own in zip(parts, [*map(together, found), ""], strict=True))


def _together(found: Sequence[str]) -> str:
    """The range of figures; of rows of names each name once, the one with the lowest figure first."""
    if len(set(found)) == 1:
        return found[0]
    rows: dict[str, list[str]] = {}
    for name, told in _NAMED.findall(" ".join(found)):
        rows.setdefault(name, []).append(told)
    if not rows:
        return _range(found)
    first = {name: [_value(one) for text in texts for one in _FIGURE.findall(text)[:1]] for name, texts in rows.items()}
    in_order = sorted(rows, key=lambda name: min(first[name], default=0.0))
    # What one text counts without a name may be what another names.
    least = max(len(_NAMED.findall(text)) + sum(map(int, _MORE.findall(text))) for text in found)
    return some_of((f"{name} ({_with_ranges(rows[name])})" for name in in_order), least=least)


def _with_ranges(texts: Sequence[str]) -> str:
    """Texts that differ in their figures alone as one; of others the last."""
    alike = len({_FIGURE.sub("\0", text) for text in texts}) == 1
    return _merged(_FIGURE, texts, _range) if alike else texts[-1]


def _value(figure: str) -> float:
    return float(figure.replace(",", ""))


def _range(figures: Sequence[str]) -> str:
    least, most = min(figures, key=_value), max(figures, key=_value)
    return least if least == most else f"{least} to {most}"
