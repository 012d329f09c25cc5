"""Copies and groups stay in one part, and a set without any is split as it always was."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest

from kood.data import ImageSet, load_id, load_outliers, loading
from kood.data.copies import image_digests
from kood.data.splitting import in_groups
from kood.errors import UserError
from kood.pipeline.checks import check
from tests.data.test_data_loading import PARTS, numbered, rows


@pytest.fixture
def given(monkeypatch, id_data):
    """given(all=..., **options) -> the splits of a source that gives these sets: (numbers, labels[, groups])."""

    def build(sets, **options):
        names = tuple(str(k) for k in range(1 + max(int(np.max(one[1])) for one in sets.values())))
        made = {}
        for part, (numbers, labels, *groups) in sets.items():
            images = numbered(2000)[np.asarray(numbers, int)]
            made[part] = ImageSet(
                images, np.asarray(labels, np.int64), names, (), (), np.asarray(groups[0], np.int64) if groups else None
            )
        monkeypatch.setattr(loading, "load_source", lambda *_, **__: made)
        return load_id(id_data("npz", image_shape=(2, 2, 1), **options))

    return build


def parts_of(splits):
    return {part: set(rows(getattr(splits, part)).tolist()) for part in PARTS}


UNEVEN = np.repeat([0, 1, 2], [50, 100, 250])[np.random.default_rng(1).permutation(400)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "c00e1161191d880d"),
        ({"count": 81, "per_class": 7}, "2fe1283d12a04e15"),
        ({"validation": 0.0, "split_seed": 3}, "ed75ab9f6461273b"),
        ({"own_test": True}, "934fd5ccba94c54e"),
        ({"own_test": True, "count": 81, "per_class": 7}, "476c9f0cc1778e6f"),
    ],
)
def test_without_copies_and_groups_the_split_is_what_it_was(given, options, expected):
    options = dict(options)
    train = np.arange(400), UNEVEN
    own = options.pop("own_test", False)
    splits = given({"train": train, "test": (np.arange(1000, 1030), np.arange(30) % 3)} if own else {"all": train},
                   **options)  # fmt: skip
    found = repr([rows(getattr(splits, part)).tolist() for part in PARTS])
    assert hashlib.sha256(found.encode()).hexdigest()[:16] == expected
    assert splits.warnings == splits.notes == ()
    assert splits.groups == {}
    assert splits.copies == {
        "images": 430 if own else 400, "different": 430 if own else 400, "apart": 0, "other_label": 0, "left_out": 0,
        "left_out_of_calibration": 0,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_copies_stand_in_one_part_and_once_in_the_calibration(given, seed):
    numbers = np.tile(np.arange(120), 4)
    splits = given({"all": (numbers, numbers % 2)}, split_seed=seed)
    parts = parts_of(splits)
    assert sum(map(len, parts.values())) == 120 == len(set().union(*parts.values()))
    assert len(splits.calibration) == len(parts["calibration"])
    assert [len(getattr(splits, part)) // 4 for part in ("train", "validation", "test")] == [76, 10, 24]
    assert len(splits.calibration) == 10
    copies = splits.copies
    assert (copies["images"], copies["different"], copies["left_out_of_calibration"]) == (480, 120, 30)
    assert 300 < copies["apart"] <= 480 and copies["other_label"] == 0
    alike, said = splits.warnings
    assert "of its 480 images 4 are of one single colour and 480 are equal to another one" in alike
    assert "data.id: 480 of 480 images have copies among the others (the same pixels at 2 x 2)" in said
    assert f"{copies['apart']} of them would have a copy in another part" in said and "30 are left out" in said


def test_copies_under_two_labels_are_counted(given):
    numbers, labels = np.arange(100), np.arange(100) % 2
    splits = given({"all": ([*numbers, 0, 0, 7], [*labels, 0, 1, 1])})
    assert splits.copies["other_label"] == 3 and splits.copies["images"] - splits.copies["different"] == 3
    assert any("3 images have a copy under another label" in text for text in splits.warnings)


def test_groups_stay_together_with_the_copies_of_their_images(given):
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(40), 10))
    numbers = np.arange(400)
    numbers[5] = numbers[np.flatnonzero(groups != groups[5])[0]]  # A copy that ties two groups.
    splits = given({"all": (numbers, np.arange(400) % 4, groups)})
    of = {part: set(getattr(splits, part).groups.tolist()) for part in PARTS}
    assert sum(map(len, of.values())) == 40 and len(set().union(*of.values())) == 40
    sizes = {part: len(getattr(splits, part)) for part in PARTS}
    # Asked for: 256, 32, 32 and 80, of groups of ten.
    assert abs(sizes["test"] - 80) <= 15 and all(20 <= sizes[part] <= 50 for part in ("validation", "calibration"))
    assert all(len(np.unique(getattr(splits, part).labels)) == 4 for part in PARTS)
    assert any("39 groups" in note for note in splits.notes)
    told = {part: {"images": sizes[part], "groups": len(of[part])} for part in PARTS if part != "train"}
    # The copy's two groups count as one, wherever they are.
    tied = next(part for part in PARTS if groups[5] in of[part])
    assert splits.groups == {part: {**its, "groups": its["groups"] - (part == tied)} for part, its in told.items()}
    first = [getattr(splits, part).sha256() for part in PARTS]
    again = given({"all": (numbers, np.arange(400) % 4, groups)})
    assert first == [getattr(again, part).sha256() for part in PARTS]


@pytest.mark.parametrize(
    ("groups", "count"),
    [(range(100), None), ([*range(96), *range(4)], None), ([*range(90), *range(10)], 90), ([0] * 4 + [*range(96)], 96)],
)
def test_images_stand_in_groups_where_these_are_many_or_large(groups, count):
    assert in_groups(np.array(groups)) == ({"images": 100, "groups": count} if count else {})


def test_one_pair_of_copies_makes_no_groups():
    assert in_groups(np.array([0, *range(18)])) == {}
    assert in_groups(np.array([0, 0, *range(17)])) == {"images": 19, "groups": 17}


def test_a_class_of_too_few_groups_is_refused(given):
    with pytest.raises(UserError, match=r"data\.id: the class '1' has too few images \(90 in 3 groups"):
        given({"all": (np.arange(190), np.repeat([0, 1], [100, 90]), [*range(100), *np.repeat([100, 101, 102], 30)])})
    # One large group and four small ones do.
    groups = [*range(100), *[100] * 50, 101, 102, 103, 104]
    splits = given({"all": (np.arange(154), np.repeat([0, 1], [100, 54]), groups)})
    assert np.bincount(splits.train.labels)[1] >= 50 and all(1 in getattr(splits, part).labels for part in PARTS)


#: Of two classes of many images and of fifty of few.
RARE = np.random.default_rng(0).permutation(np.concatenate([np.repeat([0, 1], 400), np.repeat(np.arange(2, 52), 5)]))


@pytest.mark.parametrize(
    ("each", "test"),
    # Of a class that is smaller, more is tested on, and the other parts have their share all the same.
    [(3, 1), (4, 1), (5, 1), (7, 1.4), (11, 2.2), (21, 4.2)],
)
@pytest.mark.parametrize("own_test", [False, True])
def test_rare_classes_have_their_share_of_every_part(given, each, test, own_test):
    labels, rare = np.repeat(np.arange(52), [400, 400, *[each] * 50]), 50 * each
    sets = {"all": (np.arange(len(labels)), labels)}
    if own_test:
        sets = {"train": sets["all"], "test": (np.arange(1900, 1952), np.arange(52))}
    left = 1.0 if own_test else 0.8
    found = []
    for seed in range(8):
        splits = given(sets, split_seed=seed)
        counts = {part: np.bincount(getattr(splits, part).labels, minlength=52) for part in PARTS}
        assert counts["train"].min() >= 1 and counts["test"].min() >= 1
        for part in ("calibration", "validation"):
            assert counts[part][:2].tolist() == [round(40 * left)] * 2
            assert set(counts[part][2:]) <= {np.floor(0.1 * left * each), np.ceil(0.1 * left * each)}
            assert abs(counts[part][2:].sum() - 0.1 * left * rare) < 1.5
        if not own_test:
            assert abs(counts["test"][2:].sum() - 50 * test) < 1
        found.append(tuple(counts["calibration"]))
    assert len(set(found)) > 1 or 0.1 * left * each == round(0.1 * left * each)


@pytest.mark.parametrize(("calibration", "validation"), [(0.3, 0.2), (0.4, 0.2), (0.2, 0.4)])
def test_parts_that_ask_for_more_than_a_class_has_get_less_of_it_alike(given, calibration, validation):
    labels = np.repeat(np.arange(92), [400, 400, *[3] * 90])
    splits = given({"all": (np.arange(len(labels)), labels)}, calibration=calibration, validation=validation)
    counts = {part: np.bincount(getattr(splits, part).labels, minlength=92) for part in PARTS}
    for part, share in (("calibration", calibration), ("validation", validation)):
        assert counts[part][:2].tolist() == [round(320 * share)] * 2
        # One of three is tested on and one learned.
        assert abs(counts[part][2:].sum() - 90 * share / (calibration + validation)) < 2
    assert counts["train"][2:].tolist() == counts["test"][2:].tolist() == [1] * 90


@pytest.mark.parametrize(
    ("validation", "told"),
    [
        (0.0, "evaluate.tune chooses on validation images; raise data.id.validation"),
        (0.1, "evaluate.tune chooses on validation images, and data.id.validation = 0.1 gives none of so few; raise "
              "it, lower data.id.calibration, or add images"),
    ],
)  # fmt: skip
def test_choices_without_validation_images_say_how_to_have_some(validation, told):
    recipe = SimpleNamespace(
        evaluate=SimpleNamespace(headline="msp", tune=True),
        data=SimpleNamespace(id=SimpleNamespace(validation=validation)),
    )
    images = ImageSet(numbered(2), np.arange(2), ("a", "b"), (), ())
    data = SimpleNamespace(images=lambda name: images.take(np.arange(2 if name == "train" else 0)))
    with pytest.raises(UserError) as caught:
        check(recipe, data, None)
    assert str(caught.value) == told


def test_many_images_are_dealt_as_ever_beside_rare_classes(given):
    splits = given({"all": (np.arange(len(RARE)), RARE)})
    found = repr([[row for row in rows(getattr(splits, part)).tolist() if RARE[row] < 2] for part in PARTS])
    assert hashlib.sha256(found.encode()).hexdigest()[:16] == "be1101ec7901a197"


def test_each_image_of_a_rare_class_is_as_often_in_the_calibration_part(given):
    """In groups of unequal size too, and where the images of one are of two classes."""
    labels = np.repeat(np.arange(12), [200, 200, *[9] * 10])
    groups = np.concatenate([np.arange(400), 1000 + np.repeat(np.arange(60), np.tile([1, 1, 1, 1, 1, 4], 10))])
    rare = np.mean([
        np.sum(given({"all": (np.arange(490), labels, groups)}, split_seed=seed).calibration.labels > 1)
        for seed in range(60)
    ])  # fmt: skip
    assert 5.5 < rare < 9.0  # 7.2; one group of each class and part was 10 or more.


def test_too_small_a_count_is_what_is_blamed(given):
    told = r"data\.id\.count: 9 images hold 1 of the 50 of the class '0', too few .* raise `count`"
    with pytest.raises(UserError, match=told):
        given({"all": (np.arange(400), UNEVEN)}, count=9)


def test_as_many_of_each_class_whatever_they_are_dealt_by(given):
    splits = given({"all": (np.arange(400), UNEVEN)}, stratify=False, per_class=7)
    assert np.bincount(splits.train.labels).tolist() == [7, 7, 7]


def test_classes_without_a_training_image_are_named(given):
    told = given({"all": (np.arange(120), np.repeat(np.arange(60), 2))}, stratify=False)
    there = set(told.train.labels.tolist())
    assert len(there) < 60
    missing = [str(k) for k in range(60) if k not in there]
    (said,) = [text for text in told.warnings if "no training image" in text]
    assert said.startswith(f"data.id: {len(missing)} of 60 classes have no training image ('{missing[0]}', ")
    assert not given({"all": (np.arange(120), np.arange(120) % 2)}, stratify=False).warnings

    def refused(seed):
        try:
            given({"all": (np.arange(50), np.arange(50) == 7)}, stratify=False, test=0.4, split_seed=seed)
        except UserError as error:
            return str(error)
        return ""

    told = "data.id: 1 of 2 classes have no training image ('1'), so there is nothing to tell apart; "
    assert {refused(seed).partition("add")[0] for seed in range(20)} == {"", told}


def test_images_that_are_all_equal_are_refused(given):
    with pytest.raises(UserError, match=r"data\.id: all 20 images are equal at 2 x 2 pixels"):
        given({"all": (np.zeros(20), np.arange(20) % 2)})


def test_copies_of_the_sources_own_test_images_leave_the_training_side(given):
    labels, own = np.arange(200) % 2, np.arange(30) % 2
    groups = np.arange(200)
    groups[150] = groups[151] = 1000
    test_groups = np.arange(1000, 1030)
    splits = given(
        {"train": (np.arange(200), labels, groups), "test": ([3, 4, 4, *range(1003, 1030)], own, test_groups)}
    )
    parts = parts_of(splits)
    assert rows(splits.test).tolist() == [3, 4, 4, *range(1003, 1030)]
    others = parts["train"] | parts["validation"] | parts["calibration"]
    assert others == set(range(200)) - {3, 4, 150, 151}
    assert splits.copies["left_out"] == 4 and splits.copies["apart"] == 2
    assert any("2 images are copies of images in the source's own test part" in text for text in splits.warnings)
    assert any("2 images belong together with some in the source's own test part" in text for text in splits.notes)
    assert len(splits.digests) == len(np.unique(splits.digests, axis=0)) == 227
    assert {bytes(row) for row in image_digests(splits.test.images)} <= {bytes(row) for row in splits.digests}


def test_an_own_validation_part_is_the_validation(given):
    train, held = (np.arange(200), np.arange(200) % 2), (range(500, 540), np.arange(40) % 2)
    splits = given({"train": train, "validation": held})
    assert rows(splits.validation).tolist() == list(range(500, 540))
    assert [len(getattr(splits, part)) for part in ("train", "calibration", "test")] == [144, 16, 40]
    assert any("own validation part (40 images) is taken" in note for note in splits.notes)
    both = given({"train": train, "validation": held, "test": ([500, 501, *range(600, 620)], np.arange(22) % 2)})
    assert len(both.test) == 22 and len(both.validation) == 40 and len(both.train) == 180
    assert any("2 images of the source's own validation part are in its test part" in text for text in both.warnings)


@pytest.mark.parametrize("left", [0, 1])
def test_a_class_that_leaves_for_the_test_part_is_said(given, left):
    labels, groups = np.repeat([0, 1], [100, 12]), [*range(100), 100, *[1000] * 11]
    test = [*range(500, 520), *([] if left else [100])], [0] * 10 + [1] * (11 - left), [1000, *range(2000, 2020 - left)]
    with pytest.raises(UserError, match=rf"{12 - left} of the 12 training images of the class '1' are left out, .*"
                       rf"source's own test part .* and {left} (is|are) too few"):  # fmt: skip
        given({"train": (range(112), labels, groups), "test": test})


def test_a_group_in_both_of_the_sources_own_parts_is_said(given):
    train, held = (range(200), np.arange(200) % 2, range(200)), range(500, 540)
    own = {"validation": (held, np.arange(40) % 2, held)}
    apart = given({"train": train, **own, "test": (range(600, 640), np.arange(40) % 2, range(600, 640))})
    assert any("groups, each of which stays in one part" in note for note in apart.notes) and not apart.warnings
    # One copy, and three images more of the same groups.
    numbers, groups = [500, *range(601, 640)], [500, 501, 502, 503, *range(604, 640)]
    both = given({"train": train, **own, "test": (numbers, np.arange(40) % 2, groups)})
    assert any("groups" in note for note in both.notes) and not any("one part" in note for note in both.notes)
    assert any("1 images of the source's own validation part are in its test part" in text for text in both.warnings)
    assert any("3 images of the source's own validation part belong together" in text for text in both.warnings)


@pytest.mark.keras
def test_near_copies_are_copies_where_asked_for(npz_file, id_data):
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (40, 5, 5, 3), "uint8")
    images = np.stack([np.asarray(Image.fromarray(one).resize((24, 24), Image.BICUBIC)) for one in coarse])
    path = npz_file(images=np.concatenate([images, images // 2 + 30]), labels=np.tile(np.arange(40) % 2, 2))
    data = {"image_shape": (24, 24, 3), "path": path}
    plain, near = load_id(id_data("npz", **data)), load_id(id_data("npz", near_copies=4, **data))
    assert plain.copies["different"] == 80 and not plain.warnings
    assert near.copies["different"] == 40 and near.copies["apart"] > 10
    assert "perceptual hashes that differ in at most 4 bits" in near.warnings[0]
    assert len(near.calibration) * 2 == len(near.validation)


@pytest.mark.keras
def test_real_outliers_are_training_images_unless_told(npz_file, source):
    path = npz_file(x_train=numbered(40), x_test=numbered(20, 500))
    part, found = load_outliers(source("npz", path=path), (2, 2, 1), seed=0)
    assert part == "train" and rows(found).tolist() == list(range(40))
    part, found = load_outliers(source("npz", path=path, split="test", count=3), (2, 2, 1), seed=0)
    assert part == "test" and min(rows(found)) >= 500
    assert load_outliers(source("digits"), (8, 8, 1), seed=0)[0] == "all"
