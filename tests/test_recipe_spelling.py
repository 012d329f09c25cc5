"""Recipes and `--set` as people write them: read, or refused with the spelling that works."""

import re
import shlex

import pytest

from kood.errors import UserError
from kood.recipe import Recipe, load
from tests.conftest import TINY


def refused(path, *overrides):
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ("outliers.use=noise,cutmix", "outliers.use", ["noise", "cutmix"]),
        ("outliers=noise,cutmix", "outliers.use", ["noise", "cutmix"]),
        ("outliers.use=noise", "outliers.use", ["noise"]),
        ("outliers.use=[noise, cutmix]", "outliers.use", ["noise", "cutmix"]),  # The shell took the quotes.
        ("data.id.classes=0,3", "data.id.classes", [0, 3]),
        ("data.image_shape=8,8,1", "data.image_shape", [8, 8, 1]),
        ("train.augment=", "train.augment", []),
        ("evaluate.scores=msp", "evaluate.scores", ["msp"]),
        ("matrix.seed=1,2", "matrix.seed", [1, 2]),
        ("evaluate.baseline=True", "evaluate.baseline", True),
        ("evaluate.baseline=no", "evaluate.baseline", False),
        ("train.learning_rate=.01", "train.learning_rate", 0.01),
        ("train.learning_rate=0,5", "train.learning_rate", 0.5),
        ("train.epochs=1e1", "train.epochs", 10),
        ("train.epochs='3'", "train.epochs", 3),
        ("name=2024", "name", "2024"),
        ("name=2024-01-01", "name", "2024-01-01"),
        ("data.far.uniform={source=uniform, count=60}", "data.far.uniform.source", "uniform"),
    ],
)
def test_the_spelling_that_is_shown_works(tiny, given, key, value):
    message = refused(tiny, given)
    command = shlex.split(message.rpartition("; write ")[2])
    assert command[0] == "--set" and len(command) == 2
    found = load(tiny, command[1:])
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value


def keys_of(schema, defs, above=""):
    """The dotted keys of a recipe, by its schema."""
    for name, one in schema.get("properties", {}).items():
        yield above + name
        for branch in (one, *one.get("anyOf", [])):
            if "$ref" in branch:
                yield from keys_of(defs[branch["$ref"].rpartition("/")[2]], defs, f"{above}{name}.")


@pytest.mark.parametrize("value", ['"2"', "true", "no", "1e400", "[1, '2']"])
def test_what_is_shown_for_any_key_is_not_refused_again(tiny, value):
    schema = Recipe.model_json_schema()
    keys = [*keys_of(schema, schema["$defs"])]
    assert len(keys) > 150 and {"train.devices", "data.ground", "outliers.label_mixup.groups"} <= {*keys}

    def complaints(*overrides):
        try:
            load(tiny, overrides)
        except UserError as error:
            return [line.removeprefix(f"{tiny}: ") for line in str(error).splitlines()]
        return []

    shown = 0
    for key in keys:
        told = complaints(f"{key}={value}")
        for line in told:
            where = re.sub(r"\.(\d+|name)$", "", line.partition(":")[0])
            assert where in {*keys, "recipe"} or key.startswith(where.partition(" ")[0]), line
            if found := re.search(r"; write (--set .*?)(?:; |$)", line):
                shown += 1
                left = complaints(*shlex.split(found[1])[1:])
                assert {*left} < {*told}, (line, left)
    assert shown > 3 or value == "[1, '2']"


def test_a_value_of_one_of_two_kinds_is_told_once_and_under_its_own_key(tiny):
    assert refused(tiny, 'train.devices="2"').endswith(
        "tiny.toml: train.devices: found '2'; input should be a valid integer; write --set train.devices=2"
    )
    tiny.write_text(TINY.replace("epochs = 2", "epochs = 2\ndevices = 0", 1))
    assert {line.split(": ")[1] for line in refused(tiny).splitlines()} == {"train.devices"}
    told = refused(tiny, "data.ground=true")
    assert "did you mean" not in told and "write" not in told and "Allowed: black, grey, white" in told


def test_in_a_file_the_spelling_is_that_of_the_file(tiny):
    tiny.write_text(TINY.replace('use = ["label_mixup", "noise"]', 'use = "noise, cutmix"'))
    assert refused(tiny).endswith('write use = ["noise", "cutmix"]')


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("train.epochs=true", "train.epochs: found true; input should be a valid integer"),
        ("matrix.seed=true", "matrix.seed: found true; "),
        ("train.augment=[true, 'True']", "found true; "),
        ("data.image_shape=[8, 8]", "data.image_shape: found [8, 8]; list should have at least 3 items, not 2"),
        ("data.image_shape=32", "write --set 'data.image_shape=[32, 32, 3]'"),
    ],
)
def test_what_was_found_is_told_as_toml_has_it(tiny, given, told):
    assert told in refused(tiny, given)


@pytest.mark.parametrize("given", ["train.clip_norm=None", "train.epochs=", "train.ema=null"])
def test_none_is_a_key_that_is_left_out(tiny, given):
    assert "leave the key out" in refused(tiny, given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ('data.id.path="C:\\data"', "single quotes, 'C:\\data', or with forward slashes"),
        ('data.id.path="C:\\new"', "single quotes, 'C:\\data', or with forward slashes"),
        ("data.id.path=“x”", "U+201C"),
        ("outliers.use='noise','cutmix'", "a list stands in brackets"),
        ("classifier=small_cnn", "such as classifier.backbone"),
        ("serve=0.9", "such as serve."),
        ("data.near=3", "such as data.near.NAME.source"),
    ],
)
def test_a_value_that_is_not_what_it_looks_like_is_refused(tiny, given, told):
    assert told in refused(tiny, given)
    assert load(tiny, ["data.id.path=C:\\new"]).data.id.path == "C:\\new"  # A bare word is what it is.


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seed = 3", 'seed = 3\nname = "C:\\Users"', "in single quotes"),
        ("seed = 3", 'seed = 3\nname = "C:\\data"', "in single quotes"),
        ('source = "digits"\nclasses', 'source = "folder"\npath = "C:\\test\\new"\nclasses', "data.id.path: holds a"),
        ('"arcface"', "“arcface”", "'“' (U+201C) is to be \""),
        ("epochs = 2", "epochs\u00a0= 2", "(U+00A0) is to be a blank"),
        ("margin = 0.2", "margin = None", "leave the key out"),
        ("margin = 0.2", "margin = .2", "TOML writes 0.2"),
        ('"arcface"', "arcface", "words stand in quotes"),
        ("epochs = 2", "epochs = 2\nbaseline = True", "TOML writes true"),
        ("seed = 3", "seed = # any", "seed has no value; give it one, or leave the key out"),
        ("seed = 3", "seed = 3\nname = 2024-01-01", 'write name = "2024-01-01"'),
    ],
)  # fmt: skip
def test_what_an_editor_or_a_habit_puts_into_a_file_is_named(tiny, old, new, told):
    assert old in TINY
    tiny.write_text(TINY.replace(old, new, 1), encoding="utf-8")
    assert told in refused(tiny)


def test_a_byte_order_mark_is_read_and_another_encoding_told(tiny):
    plain = load(tiny)
    tiny.write_bytes(b"\xef\xbb\xbf" + TINY.replace("\n", "\r\n").encode())
    assert load(tiny) == plain
    tiny.write_text(TINY, encoding="utf-16")
    assert "save it as UTF-8" in refused(tiny)
