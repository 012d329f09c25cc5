"""A threshold from the user's own images."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kood.cli.finished import calibrate as command
from kood.conformal import Group, threshold
from kood.data.copies import image_digests, perceptual_hashes
from kood.data.images import fit_images
from kood.data.rules import Framing
from kood.errors import UserError
from kood.runs import Run
from kood.serving import calibrate as calibrating
from kood.serving import extras, publishing
from kood.serving.calibrate import calibrate
from kood.serving.client import LocalModel
from kood.serving.client import prepared as as_sent
from kood.serving.extras import read_facts, read_seen
from kood.serving.seen import Seen
from tests.serving.models import encoded, pixels, prepared, published

pytestmark = pytest.mark.usefixtures("loaded_once", "as_written")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    published(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own images")
    for place, image in enumerate(pixels(120, 5)):
        (folder / f"class {place % 4}").mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"class {place % 4}" / f"{place}.png")
    (folder / "class 0" / "bad.png").write_bytes(b"nothing")
    return folder


def test_the_next_version_has_the_new_threshold(run, images):
    done = calibrate(run, [images], accept=0.9, check=0.25)
    assert done.version == run / "2" and (run / "1" / "saved_model.pb").exists() and len(done.unread) == 1
    facts = read_facts(run / "2")
    assert facts["calibration_images"] == 90 and facts["accepted"]["images"] == 30
    order = np.random.default_rng(0).permutation(120)
    files = sorted(images.rglob("*.png"))
    files.remove(images / "class 0" / "bad.png")
    model = tf.saved_model.load(str(run / "1")).signatures["encoded"]
    answer = model(image_bytes=tf.constant([file.read_bytes() for file in files]))
    scores = answer["ood_score"].numpy().astype("float64")
    assert facts["threshold"] == pytest.approx(threshold(scores[order[30:]], 0.9), rel=1e-6)
    rate, (low, high) = facts["accepted"]["rate"], facts["accepted"]["interval"]
    assert rate == pytest.approx(np.mean(scores[order[:30]] <= facts["threshold"])) and low <= rate <= high
    assert facts["accept"] == 0.9 and facts["calibrated_from"] == "1" and facts["accuracy"] == 0.5
    assert f"{rate:.1%}" in (run / "2" / "assets.extra" / "model_card.md").read_text()
    was = read_facts(run / "1")["threshold"]
    assert done.told == [
        f"Threshold: {facts['threshold']:.6g} (was {was:.6g}), set on 90 images: one like them is accepted with "
        "probability at least 0.9",
        f"Of 30 others it accepts {rate:.1%} (95% interval {low:.1%} to {high:.1%})",
        *[line for line in done.told if line.startswith("Warning: ")],
        f"Written: {run / '2'} ({run / '1'} stays)",
    ]
    # What is not said stays as the newest version has it.
    again = calibrate(run, [images], check=0.0)
    facts = read_facts(run / "3")
    assert again.version == run / "3" and facts["accept"] == 0.9 and facts["accepted"] is None
    assert "Again among them: 90 images that an earlier calibration was given" in again.told


@pytest.mark.parametrize("inside", ["1", "."])
def test_the_next_version_stands_beside_the_one_that_it_is_called_from(tmp_path, images, monkeypatch, inside):
    published(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run" / inside)
    done = calibrate(Path(), [images], accept=0.9)
    assert done.version.resolve() == tmp_path / "run" / "2"
    facts = read_facts(tmp_path / "run" / "2")
    assert facts["calibrated_from"] == "1" and facts["name"] == "run"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"accept": 0.999}, "needs at least 999 images.* of 121 files 120 could be read and 24"),
        ({"accept": 1.0}, "--accept 1.0: write a share"),
        ({"accept": 0.0}, "--accept 0.0: write a share"),
        ({"check": 1.0}, "--check 1.0: write a share"),
    ],
)
def test_what_cannot_be_guaranteed_is_refused(run, images, how, message):
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(UserError, match=message):
        calibrate(run, [images], **how)
    assert sorted(path.name for path in run.iterdir()) == before


def test_no_other_version_comes_while_images_are_asked_about(tmp_path, images, monkeypatch):
    published(tmp_path / "run")
    tried, ask = [], LocalModel.ask

    def asked(self, files):
        with pytest.raises(UserError, match="holds this folder"), Run(tmp_path / "run").held():
            tried.append("published")
        tried.append("refused")
        return ask(self, files)

    monkeypatch.setattr(LocalModel, "ask", asked)
    assert calibrate(tmp_path / "run", [images], accept=0.9).version.name == "2"
    assert set(tried) == {"refused"}


def test_what_cannot_be_published_is_refused_before_an_image_is_read(run, images, monkeypatch):
    monkeypatch.setattr(LocalModel, "ask", lambda *_: pytest.fail("an image is asked about"))
    with Run(run).held(), pytest.raises(UserError, match=r"process \d+ holds this folder; wait for it$"):
        calibrate(run, [images], accept=0.9)
    monkeypatch.setenv("KERAS_BACKEND", "jaxx")
    with pytest.raises(UserError, match="KERAS_BACKEND=jaxx: did you mean 'jax'"):
        command(run, [images], accept=0.9)


def test_data_that_is_not_there_is_named(run, images):
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(UserError, match=r"--data .*nowhere: does not exist"):
        calibrate(run, [images, run / "nowhere"])
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_folder_that_is_no_run(tmp_path, images):
    with pytest.raises(UserError, match="no SavedModel"):
        calibrate(tmp_path, [images])
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "saved_model.pb").touch()
    with pytest.raises(UserError, match=r"exported: the folder of a version is named by a number; .*exported/1$"):
        calibrate(tmp_path / "exported", [images])
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def files_of(folder, images, name="jpg"):
    folder.mkdir()
    for place, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{place:03d}.{name}", **({"lossless": True} if name == "webp" else {}))
    return folder


@pytest.mark.usefixtures("same_graph")
def test_images_that_the_model_knows_are_left_out_and_counted(tmp_path):
    trained, chosen, calibrated, new = np.split(pixels(100, 5), [30, 50, 60])
    given = prepared(tmp_path)
    known = {"trained": trained, "chosen": chosen, "calibrated": calibrated}
    seen = {use: image_digests(images) for use, images in known.items()}
    served = given["served"].__class__(**{**vars(given["served"]), "seen": seen})
    run = tmp_path / "run"
    run.mkdir()
    publishing.publish(**{**given, "served": served, "version_folder": run / "1"})
    # Other files, other names, the same pixels.
    every = files_of(tmp_path / "all", np.concatenate([new, trained, calibrated, chosen]), "webp")
    alone = files_of(tmp_path / "new", new, "png")
    done, expected = calibrate(run, [every], accept=0.8, check=0.0), calibrate(run, [alone], accept=0.8, check=0.0)
    facts = read_facts(done.version)
    assert facts["calibration_images"] == 40 and facts["threshold"] == read_facts(expected.version)["threshold"]
    told = "Left out: 60 images that the model was trained on (30) and chosen on (20) and calibrated on (10)"
    assert told in done.told and "Left out" not in "".join(expected.told)
    # The same images under another share: an earlier calibration has shown the classifier nothing.
    again = "Again among them: 40 images that an earlier calibration was given"
    assert (again in done.told, again in expected.told) == (False, True)
    assert len(read_seen(run / "3")["recalibrated"]) == 40
    with pytest.raises(
        UserError, match=r"needs at least 19 images.* 60 of these are images that the model was trained"
    ):
        calibrate(run, [every], accept=0.95, check=0.6)
    with pytest.raises(UserError, match="the model was trained on"):
        calibrate(run, [files_of(tmp_path / "old", trained, "png")], accept=0.5)


@pytest.mark.parametrize("distance", [4, None])
def test_near_copies_of_what_the_version_was_made_of_are_told_of(tmp_path, distance):
    given, new = prepared(tmp_path), pixels(40, 5)
    known = {"trained": image_digests(pixels(20, 6))}
    if distance is not None:  # Other pixels of what three of the images show.
        near = perceptual_hashes(new[:3]) ^ np.uint64(5)
        known |= {"hashes": np.append(near, perceptual_hashes(pixels(20, 6))), "near_copies": np.array([distance])}
    served = given["served"].__class__(**{**vars(given["served"]), "seen": known})
    run = tmp_path / "run"
    run.mkdir()
    publishing.publish(**{**given, "served": served, "version_folder": run / "1"})
    files = files_of(tmp_path / "new", new, "png")
    for number in (2, 3):  # What one version was told, the next one knows.
        done = calibrate(run, [files], accept=0.8, check=0.0)
        told = [line for line in done.told if "near copies" in line]
        assert done.version.name == str(number) and read_facts(done.version)["calibration_images"] == 40
        assert told == [] if distance is None else told == [
            "Warning: 3 of the 40 images are near copies of some that the model was made of, such as "
            f"{files / '000.png'}, {files / '001.png'}, {files / '002.png'}; a threshold set on what it has seen "
            "accepts less than it promises, so take them out"
        ]  # fmt: skip


def test_images_are_let_go_once_they_are_known_by_their_digests(run, images, monkeypatch):
    monkeypatch.setattr("kood.data.large.IN_MEMORY", 50 * 8 * 8 * 3)  # Bytes; a block has 32 of the 120 images.
    monkeypatch.setattr("numpy.memmap", lambda *_, **__: pytest.fail("pixels are written to disk"))
    read, _, digests = Seen(run / "1", read_facts(run / "1")).ask(sorted(images.rglob("*.png")))
    shown = np.stack([np.asarray(Image.open(answer.file)) for answer in read])
    assert len(read) == 120 and np.array_equal(digests, image_digests(shown))


def test_copies_and_files_given_twice_count_once(tmp_path, run, monkeypatch):
    monkeypatch.setattr("kood.serving.calibrate.publish_calibrated", lambda *_: None)
    one = files_of(tmp_path / "one", pixels(40, 8), "png")
    twice = files_of(tmp_path / "twice", np.repeat(pixels(40, 8), 2, axis=0), "png")
    thresholds = set()
    for data, copies in (([one, one], 40), ([twice], 40), ([one], 0)):
        done = calibrate(run, data, accept=0.8, check=0.25)
        told = "\n".join(done.told)
        assert ", set on 30 images: " in told and "Of 10 others it accepts" in told
        assert ("Left out: 40 copies of others, which say nothing new" in done.told) == bool(copies)
        thresholds.update(re.findall(r"Threshold: (\S+)", told))
    assert len(thresholds) == 1
    with pytest.raises(UserError, match="39 are copies of others"):
        calibrate(run, [files_of(tmp_path / "same", np.repeat(pixels(1, 8), 40, axis=0), "png")], accept=0.8)


@pytest.mark.parametrize("by_class", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_images_that_are_strange_to_the_old_threshold_are_told_of_before_what_was_written(tmp_path, by_class):
    run = tmp_path / "run"
    published(run)
    like = files_of(tmp_path / "like", pixels(300, 5), "png")
    calibrate(run, [like], accept=0.8, check=0.0, by_class=by_class)
    # Of the same kind: nothing to say.
    done = calibrate(run, [files_of(tmp_path / "more", pixels(200, 6), "png")], check=0.0)
    assert not any("Warning" in line for line in done.told)
    score = {file: answer["ood_score"] for file, answer in answered(run / "2", like)}
    highest = sorted(score, key=score.get)[-120:]  # Known to an earlier calibration, which hides nothing.
    other = tmp_path / "other"
    other.mkdir()
    for file in highest:
        file.rename(other / file.name)
    done = calibrate(run / "2", [other], check=0.0)
    *_, doubt, written = done.told
    assert doubt.startswith("Warning: Of ") and written.startswith("Written: ")
    assert re.search(r"the old threshold accepts \d+\.\d% where 80\.0% are expected: make sure that they are", doubt)
    # The lowest are all accepted, and yet no sample of images like the others.
    done = calibrate(run / "2", [like], check=0.0)
    *_, doubt, _ = done.told
    assert "have a p-value of at most" in doubt and "make sure that the model has not seen" in doubt


def answered(version, folder):
    files = sorted(folder.iterdir())
    return zip(files, LocalModel(version).ask([file.read_bytes() for file in files]), strict=True)


@pytest.mark.usefixtures("same_graph")
def test_folders_that_are_named_as_no_class_are_told_of(tmp_path, run, monkeypatch):
    monkeypatch.setattr("kood.serving.calibrate.publish_calibrated", lambda *_: None)
    for place, image in enumerate(pixels(60, 5)):
        for data, names in {
            "strange": ("x", "y/z"), "right": ("A", "deep/b c"), "some": ("a", "y/z"), "parts": ("train/a", "val/f"),
        }.items():  # fmt: skip
            folder = tmp_path / data / names[place % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{place}.png")
    said = {}
    for data in ("strange", "right", "some", "parts"):
        *lines, written = calibrate(run, [tmp_path / data], check=0.0).told
        said[data] = [line for line in lines if "sub-folders" in line]
        assert written.startswith("Written")
    assert (
        said["right"]
        == said["parts"]
        == []
        == [line for line in calibrate(run, [tmp_path / "right" / "A"], accept=0.6).told if "sub-folders" in line]
    )
    assert said["strange"] == [
        "Warning: Of 2 sub-folders of images none are named as a class of the model; its classes are a, b c, d e, f: "
        "make sure that the images are of these"
    ]
    assert "Of 2 sub-folders of images not all (y/z) are named" in said["some"][0]


@pytest.mark.usefixtures("same_graph")
def test_a_table_of_images_is_taken_and_its_labels_are_compared(tmp_path, run, monkeypatch):
    monkeypatch.setattr("kood.serving.calibrate.publish_calibrated", lambda *_: None)
    for place, image in enumerate(pixels(60, 5)):
        Image.fromarray(image).save(tmp_path / f"{place}.png")
    for name, labels in (("right", ("A", "B  c")), ("some", ("a", "x"))):
        lines = [f"{place}.png;{labels[place % 2]}" for place in range(60)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["file;label", *lines]))
    right, some = (calibrate(run, [tmp_path / f"{name}.csv"], check=0.0) for name in ("right", "some"))
    assert all(", set on 60 images: " in "".join(one.told) for one in (right, some))
    assert not [line for line in right.told if "named as a class" in line]
    assert [line for line in some.told if "Of 2 labels of images not all (x) are named as a class" in line]
    with pytest.raises(UserError, match=r"^--data https://host/a: URLs are not fetched"):
        calibrate(run, [Path("https://host/a")])


@pytest.mark.parametrize(
    ("header", "beside", "strange"),
    [
        ("image,timestamp", ("2026-01-01", "2026-01-02"), ""),
        ("id,image,label,class_name", ("0,a", "1,b c"), ""),  # As `kood predict --csv` writes them.
        ("image,label", ("0", "3"), ""),
        ("image,label", ("0", "4"), "Of 2 labels of images not all (4) are"),
        ("image,label", ("", ""), ""),
        ("image,label,class_name", ("0,x", "1,y"), "Of 2 labels of images none are"),
        ("image,class,category", ("a,animal", "b c,plant"), ""),
        ("image,kind", ("a", "a"), ""),
        ("", ("x", "a"), "Of 2 labels of images not all (x) are"),
    ],
)
def test_only_labels_are_compared_with_the_classes(tmp_path, header, beside, strange):
    lines = ",".join(["1"] * header.startswith("id") + ["{}.png", "{}"])
    (tmp_path / "t.csv").write_text("\n".join([header, *(lines.format(k, what) for k, what in enumerate(beside))]))
    told = calibrating._unnamed([tmp_path / "t.csv"], [], ["a", "b c", "d e", "f"])
    assert told.partition(" named")[0] == strange


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.usefixtures("same_graph")
def test_an_image_that_cannot_be_judged_counts_as_flagged(tmp_path, monkeypatch, by_class):
    run, images = tmp_path / "run", files_of(tmp_path / "images", pixels(60, 8), "png")
    published(run)
    plain = calibrate(run, [images], accept=0.6, check=0.0, by_class=by_class)
    ask = LocalModel.ask

    def strange(self, files):
        unknown = {"label": -1, "class_name": "", "ood_score": float(np.finfo("float32").max), "p_value": 0.0}
        told = ask(self, files)
        return [{**one, **unknown, "is_ood": True} if place % 6 == 0 else one for place, one in enumerate(told)]

    monkeypatch.setattr(LocalModel, "ask", strange)
    done = calibrate(run, [images], accept=0.6, check=0.0, by_class=by_class)
    told = re.findall(r": (\d+) images whose probabilities or score are no numbers", "\n".join(done.told))
    assert int(told[0]) >= 10
    facts = read_facts(done.version)
    assert all(group["threshold"] < 1e30 for group in facts["groups"])
    if not by_class:
        assert facts["threshold"] > read_facts(plain.version)["threshold"]
        with pytest.raises(UserError, match="calibration images have a score that is NaN or infinite"):
            calibrate(run, [images], accept=0.95, check=0.0)
    assert sorted(path.name for path in run.iterdir() if path.name.isdecimal()) == ["1", "2", "3"]


def test_a_version_that_does_not_say_what_it_was_made_of_is_refused(tmp_path, images):
    published(tmp_path / "run")
    (tmp_path / "run" / "1" / "assets.extra" / "images.npz").unlink()
    with pytest.raises(UserError, match=r"images\.npz cannot be read .*run the recipe again"):
        calibrate(tmp_path / "run", [images], check=0.0)


@pytest.mark.usefixtures("same_graph")
@pytest.mark.parametrize("kind", ["method", "encrypted", "content"])
def test_a_damaged_list_of_images_is_named(tmp_path, kind):
    (tmp_path / "assets.extra").mkdir()
    file = tmp_path / "assets.extra" / "images.npz"
    np.savez_compressed(file, trained=np.zeros((5, 16), np.uint8))
    content = bytearray(file.read_bytes())
    told = content.find(b"PK\x01\x02")  # Where the archive says what is in it.
    at = {"method": told + 10, "encrypted": told + 8, "content": content.find(b".npy", 30) + 24}[kind]
    content[at] = {"method": 99, "encrypted": 1, "content": content[at] ^ 255}[kind]
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"images\.npz cannot be read \(.*; run the recipe again"):
        read_seen(tmp_path)


def test_long_lists_of_classes_that_share_a_threshold_are_cut():
    names = [f"class {k}" for k in range(1000)]
    groups = [Group((k,), 0.5, 99, 0, 1) for k in range(4)] + [Group(tuple(range(4, 1000)), 0.25, 99, 0, 1)]
    served = SimpleNamespace(decision=SimpleNamespace(groups=groups), names=names, accept=0.9)
    told = calibrating._thresholds(served, None)
    shared = "class 4, class 5, class 6, class 7, class 8 and 991 more: 0.25"
    assert told[0].startswith("Threshold of class 0: 0.5, ") and told[4].startswith(f"Threshold of {shared}")
    facts = {"class_names": names, "groups": [vars(group) for group in groups]}
    assert extras._thresholds(facts).endswith(f"(class 0: 0.5, class 1: 0.5, class 2: 0.5, class 3: 0.5, {shared})")
    facts["groups"] = [vars(Group((k,), 0.5, 99, 0, 1)) for k in range(1000)]
    assert len(extras._thresholds(facts)) < 500


def test_figures_of_the_old_threshold_go(tmp_path, images):
    given = prepared(tmp_path)
    one = {"name": "a", "images": 20, "accuracy": 0.5, "accepted": 0.1, "accepted_interval": [0.0, 0.3]}
    facts = {**given["facts"], "classes": [one], "threshold_warnings": ["too few of 'a'"]}
    (tmp_path / "run").mkdir()
    publishing.publish(**{**given, "facts": facts, "version_folder": tmp_path / "run" / "1"})
    assert "Warning: too few of 'a'" in (tmp_path / "run" / "1" / "assets.extra" / "model_card.md").read_text()
    done = calibrate(tmp_path / "run", [images], check=0.0)
    assert "too few" not in (done.version / "assets.extra" / "model_card.md").read_text()
    assert read_facts(done.version)["classes"] == [{"name": "a", "images": 20, "accuracy": 0.5}]


@pytest.mark.usefixtures("same_graph")
def test_a_threshold_for_each_class(run, images):
    done = calibrate(run, [images], accept=0.6, by_class=True, check=0.0)
    facts = read_facts(done.version)
    groups = facts["groups"]
    assert facts["by_class"] and facts["threshold"] is None and len(groups) > 1
    assert sum(group["images"] for group in groups) == 120
    assert all(f"Threshold of {facts['class_names'][g['classes'][0]]}" in "\n".join(done.told) for g in groups)
    # What is not said stays; and back.
    assert read_facts(calibrate(run, [images], check=0.0).version)["by_class"]
    again = calibrate(run, [images], by_class=False, check=0.0)
    assert read_facts(again.version)["threshold"] is not None and "(was " not in "".join(again.told)


def seen_through(model, folder):
    """A model's score of a picture that one sees through, and the ground over which it would get that score laid."""
    four = pixels(1, 3, channels=4)
    Image.fromarray(four[0]).save(folder / "four.png")
    score = model.ask([as_sent(folder / "four.png")])[0]["ood_score"]
    laid = {
        ground: fit_images(four, (8, 8, 3), Framing(ground)) for ground in [(255, 255, 255), (0, 0, 0), (9, 200, 77)]
    }
    scores = {ground: model.ask([encoded(image[0])])[0]["ood_score"] for ground, image in laid.items()}
    assert len(set(scores.values())) == 3
    return min(scores, key=lambda ground: abs(scores[ground] - score)), min(abs(np.array([*scores.values()]) - score))


@pytest.mark.slow
def test_the_ground_and_what_becomes_of_other_proportions_stay(tmp_path, images):
    ground = (9, 200, 77)
    given = prepared(tmp_path, ground=ground)
    given["served"] = dataclasses.replace(given["served"], framing=Framing(ground, "crop"))
    publishing.publish(**given)
    facts = read_facts(tmp_path / "1")
    assert facts["ground"] == list(ground) and facts["resize"] == "crop"
    model, wide = LocalModel(tmp_path / "1"), encoded(pixels(1, 9, size=(8, 30))[0])
    before = model.ask([wide])[0]["ood_score"]
    assert seen_through(model, tmp_path) == (ground, pytest.approx(0, abs=1e-6))
    done = calibrate(tmp_path / "1", [images], accept=0.9)
    facts = read_facts(done.version)
    assert facts["ground"] == list(ground) and facts["resize"] == "crop"
    again = LocalModel(done.version)
    assert seen_through(again, tmp_path)[0] == ground and again.ask([wide])[0]["ood_score"] == before
    assert "Left out" not in "".join(calibrate(done.version, [images], accept=0.9).told)
