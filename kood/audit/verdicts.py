"""What the figures of an audit mean, in sentences that need no knowledge of the field, and which of them warn."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["MIRROR", "judge_content", "judge_diversity", "judge_fidelity", "warnings"]

#: The augmentation that can be undone: what it makes of a training image is searched for too.
MIRROR = "flip"

#: Pure-label samples show their classes weakly below this part of the judge's skill on real images.
SHOWN = 0.5
#: Mixtures show other classes than their parents below this part of what pure-label samples hold above chance.
PARENTS = 0.5
#: They show one parent only where the judge's entropy on them exceeds that on pure-label samples by less than this part
#: of the entropy of their shares. Averages of two real 8x8 digits, which surely show both, exceeded it by .8 of that at
#: equal shares, by .4 at .7 to .3, and by .16 at .9 to .1, where they show little but one.
DOUBT = 0.2
#: A judge with less skill than this on real images has no say.
SKILLED = 0.1
#: Memorised samples, or repeated ones, are worth a warning above this share.
RARE = 0.01

WARNINGS = {
    "failed": (
        "Shortcut test failed: the detector has learnt to spot generated images instead of images between classes; "
        "expect it to do worse on real outliers."
    ),
    "weak": (
        "The generated images do not show the classes they were made for, so mixtures of these classes say little "
        "about what lies between classes."
    ),
    "other": "The mixtures show other classes than those they were mixed of.",
    "memorised": "Some generated images are near-copies of training images instead of new images.",
    "repeated": "The generator repeats itself: some generated images are exactly alike.",
}


MIXTURES = {
    "both": "So the mixtures show their parents and lie between classes.",
    "one": (
        "So it is hardly less sure of mixtures: many look like an image of one class, which the detector is then told "
        "to call an outlier."
    ),
    "other": "So the mixtures show other classes than those they were mixed of.",
}


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


def judge_content(content: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on class content, from `pure_content` of samples and held-out images and `mixed_content`.

    Skill is the share recognised above chance 1/K, as a part of 1 - 1/K. "unjudged": the judge has less than
    `SKILLED` on real images; "weak": less than `SHOWN` of that on the samples; else "shown".

    Of the mixtures, where the samples are "shown": "other" where the posterior of the parents, above its chance M/K
    as a part of 1 - M/K, is less than `PARENTS` of the same of the intended class on pure-label samples (not asked
    where every class is a parent); "one" where the entropy on mixtures exceeds that on pure-label samples by less than
    `DOUBT` of the entropy of their shares; else "both".

    Returns:
        "verdict", "mixtures_verdict" (None where nothing can be said), and "sentences".
    """
    pure, real, mixed = content["pure"], content["held_out"], content["mixtures"]
    classes = len(pure["per_class"])
    chance = 1 / classes
    skill, on_samples = ((one["share"] - chance) / (1 - chance) for one in (real, pure))
    sentences = [
        f"A classifier trained on real images only, the judge, names the intended class of {_percent(pure['share'])} "
        f"of the samples made for a single class; it names that of {_percent(real['share'])} of real images it never "
        f"saw. Guessing would name {_percent(chance)}."
    ]
    if skill < SKILLED:
        verdict = "unjudged"
        sentences.append("It hardly knows the real images, so it cannot say what the samples show.")
    elif on_samples < SHOWN * skill:
        verdict = "weak"
        sentences.append("The samples do not show their classes well enough for their mixtures to mean much.")
    else:
        verdict = "shown"
        sentences.append("The samples show the classes they were made for.")
    on_mixtures = None
    if mixed is not None:
        sentences.append(_on_mixtures(mixed, pure, classes))
        if verdict == "shown":
            on_mixtures = _mixture_verdict(mixed, pure, classes)
            sentences.append(MIXTURES[on_mixtures])
    return {"verdict": verdict, "mixtures_verdict": on_mixtures, "sentences": sentences}


def _mixture_verdict(mixed: Mapping[str, Any], pure: Mapping[str, Any], classes: int) -> str:
    chance = (mixed["parents"]["min"] + mixed["parents"]["max"]) / 2 / classes
    confidence = (pure["confidence"] - 1 / classes) / (1 - 1 / classes)
    if chance < 1 and (mixed["all_parents"] - chance) / (1 - chance) < PARENTS * confidence:
        return "other"
    return "one" if mixed["entropy"] - pure["entropy"] < DOUBT * mixed["share_entropy"] else "both"


def _on_mixtures(mixed: Mapping[str, Any], pure: Mapping[str, Any], classes: int) -> str:
    fewest, many = mixed["parents"]["min"], mixed["parents"]["max"]
    parents = "both parents" if many == 2 else "all parents"
    text = f"Of the mixtures, {_percent(mixed['on_top'])} have {parents} on top of the judge's list"
    if fewest == many < classes:
        text += f" (guessing: {_percent(1 / math.comb(classes, many))})"
    text += (
        f", and the parents hold {_percent(mixed['all_parents'])} of its belief: {_percent(mixed['first'])} the first, "
        f"{_percent(mixed['second'])} the second. Its doubt, the entropy of its belief, is {mixed['entropy']:.2f} on "
        f"mixtures and {pure['entropy']:.2f} on single-class samples; the shares of the mixtures have "
        f"{mixed['share_entropy']:.2f}."
    )
    return text


def judge_diversity(diversity: Mapping[str, Any], augment: Sequence[str] = ()) -> dict[str, Any]:
    """The verdict on diversity, where the generator was trained on images under these augmentations.

    "memorised": in the pure-label samples or the mixtures, more than `RARE` and more than twice the share of held-out
    images are near-copies of a training image; else "repeated": more than `RARE` equal another of their set; else
    "new".

    Returns:
        "verdict" and "sentences".
    """
    sets = diversity["sets"]
    real = sets["held_out"]
    made = {name: one for name, one in sets.items() if name != "held_out"}
    allowed = max(RARE, 2 * real["memorised"]["share"])
    if any(one["memorised"]["share"] > allowed for one in made.values()):
        verdict = "memorised"
    elif any(one["duplicates"] > RARE * one["n"] for one in made.values()):
        verdict = "repeated"
    else:
        verdict = "new"
    called = {"pure": "single-class samples", "mixtures": "mixtures"}
    parts = [
        f"{one['memorised']['count']} of {one['searched']} {called[name]} ({_percent(one['memorised']['share'])})"
        for name, one in made.items()
    ]
    memory = real["memorised"]
    sentences = [
        f"Near-copies of a training image: {' and '.join(parts)}; of real images that nothing was trained on, "
        f"{memory['count']} of {real['searched']} ({_percent(memory['share'])}).",
        f"Exactly alike with another sample: {_images(sum(one['duplicates'] for one in made.values()))}; exact copies "
        f"of a training image: {_images(sum(one['copies'] for one in made.values()))}.",
    ]
    if MIRROR in augment:
        sentences.append("The generator learnt mirrored images too, so near-copies are looked for both ways round.")
    if unseen := [name for name in augment if name != MIRROR]:
        sentences.append(
            f"It learnt images under {', '.join(unseen)} too: copies of a training image that are shifted or changed "
            "so are not seen here."
        )
    pure = sets["pure"]["among"]["median"]
    if real["among"]["median"] > 0:
        part = pure / real["among"]["median"]
        sentences.append(
            f"From one single-class sample to the most similar other one it is {part:.2f} times as far as between as "
            "many real images; far below 1, the generator makes the same few images again and again, or smoother ones."
        )
    return {"verdict": verdict, "sentences": sentences}


def judge_fidelity(fidelity: Mapping[str, Any]) -> dict[str, Any]:
    """What the distances mean; they have no verdict, for their scale is that of the feature space.

    Returns:
        "sentences".
    """
    pure, train = fidelity["sets"]["pure"], fidelity["sets"]["train"]
    sentences = [
        f"Distance of {pure['n']} single-class samples to {fidelity['n_held_out']} held-out real images: FID "
        f"{pure['fid']:.4g}, KID {pure['kid']:.4g}. As many real training images have FID {train['fid']:.4g}, KID "
        f"{train['kid']:.4g}; the features were learnt on these very images, so new real ones lie nearer if anything."
    ]
    if min(pure["n"], fidelity["n_held_out"]) <= fidelity["dimensions"]:
        sentences.append(
            f"There are no more images than the {fidelity['dimensions']} dimensions of the features: FID then measures "
            "their number as much as their look; read KID, which does not."
        )
    return {"sentences": sentences}


def warnings(audited: Mapping[str, Any]) -> list[str]:
    """The sentences of an audit that belong at the top of a report: fixed ones, so that equal warnings can be counted.

    Args:
        audited: With the verdicts of "content", "diversity" and, where it was tested, "shortcut".
    """
    verdicts = [(audited.get(part) or {}).get("verdict") for part in ("shortcut", "content", "diversity")]
    verdicts.insert(2, audited["content"].get("mixtures_verdict"))
    return [WARNINGS[verdict] for verdict in verdicts if verdict in WARNINGS]
