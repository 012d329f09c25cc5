"""A score and its options in one string: the same settings are the same string, whatever they were written as."""

import json
import math

import pytest

from kood import registry, specs
from kood.errors import UserError


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("ASH", "ash"),
        ("ash:share=0.9", "ash"),
        ("ash:share=0.90,variant=S", "ash"),
        ("ash:variant=B, share=0.8", "ash:share=0.8,variant=B"),
        ({"name": "ash", "share": 0.8, "variant": "B"}, "ash:share=0.8,variant=B"),
        ({"name": "ash:variant=B", "share": 0.8}, "ash:share=0.8,variant=B"),
        ({"name": "KNN", "k": 50}, "knn"),
        ("knn:limit=2000,k=10", "knn:k=10,limit=2000"),
        ("energy:temperature=500", "energy:temperature=500"),
        ({"name": "energy", "temperature": 500.0}, "energy:temperature=500"),
        ("energy:temperature=1", "energy"),
        ("gen:top=10,gamma=1e-2", "gen:gamma=0.01,top=10"),
        ("mahalanobis:cut=1e-9", "mahalanobis:cut=1e-09"),
        ("odin:temperature=500,epsilon=0.002", "odin:epsilon=0.002,temperature=500"),
    ],
)
def test_equal_settings_are_equal_strings(spec, expected):
    assert specs.canonical(spec) == expected
    assert specs.canonical(expected) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nope", "x: there is no 'nope' among the scores"),
        ("knm:k=3", "did you mean 'knn'"),
        ("ash:pruned=0.9", "x: ash has no option 'pruned'; .*Allowed: share, variant"),
        ("ash:shar=0.9", "did you mean 'share'"),
        ("msp:k=1", "msp has no option 'k'; none is allowed"),
        ("knn:k=ten", "x: knn: k is a whole number; found 'ten'"),
        ("knn:k=1.5", "k is a whole number; found 1.5"),
        ("knn:k=true", "k is a whole number; found true"),
        ({"name": "knn", "k": "10"}, "k is a whole number; found '10'"),
        ({"name": "ash", "share": [1]}, "share is a number; found"),
        ("energy:temperature=1e999", "temperature is a finite number"),
        ({"name": "ash", "variant": "a/b"}, "a word is made of letters"),
        ("ash:share", "write the value of 'share' too, as in ash:share="),
        ("knn:k=1,k=2", "gives an option twice"),
        ("knn:k=1:limit=2", "is no score with options; write it as knn:k=10"),
        ("", "is no score with options"),
        ({"k": 3}, "a score is told by its name .'knn', .* with options as in 'knn:k=10'"),
        (["energy", "msp"], r"found \['energy', 'msp'\]; a score is told by its name"),
        (None, "found None; a score is told by its name"),
        (math.sqrt, "found <built-in function sqrt>; a score is told by its name"),
    ],
)
def test_what_is_wrong_is_told_with_its_key(spec, message):
    with pytest.raises(UserError, match=message) as caught:
        specs.canonical(spec, "x")
    assert str(caught.value).startswith("x: ") and caught.value.exit_code == 2


@pytest.mark.parametrize("name", registry.room("scores"))
def test_usual_values_are_options_and_fit_a_string(name):
    entry = registry.find("scores", name)
    assert set(entry.usual) <= set(specs.defaults(entry))
    settings = list(specs.settings(name))
    assert settings[0] == name and len(set(settings)) == len(settings)
    assert len(settings) > 1 or not entry.usual
    for setting in settings:
        assert specs.canonical(setting) == setting and "/" not in setting
    if entry.usual:
        assert list(specs.settings(settings[1])) == [settings[1]]  # What says an option itself is left as it is.


def test_settings_are_all_combinations():
    assert list(specs.settings("ash")) == ["ash", *(f"ash:share={s}" for s in (0.65, 0.7, 0.75, 0.8, 0.85, 0.95))]
    assert set(specs.settings("odin")) == {
        specs.canonical("odin", temperature=t, epsilon=e) for t in (1, 10, 100, 1000) for e in (0.0028, 0.0056)
    }
    assert list(specs.settings("msp")) == ["msp"]
    # What is left at its default is among them, so that of equals the shorter spec is taken.
    assert list(specs.settings("vim")) == ["vim", *(f"vim:dim={dim}" for dim in (16, 64, 256, 1000))]
    assert {"gen", "gen:gamma=5", "gen:top=10", "gen:gamma=5,top=10"} < set(specs.settings("gen"))


def test_defaults_are_told_as_they_are():
    told = list(specs.told(registry.find("scores", "ash")))
    assert told == ["share=0.9 (usual: 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)", "variant=S"]
    assert list(specs.told(registry.find("scores", "gen")))[1].startswith("top=100 (usual: 10, 50")


def test_options_are_in_the_schema(tiny):
    from kood.recipe import Recipe, load

    schema = Recipe.model_json_schema()
    score = schema["$defs"]["Evaluate"]["properties"]["scores"]["anyOf"][0]["items"]
    assert [one["type"] for one in score["anyOf"]] == ["string", "object"]
    json.dumps(schema)
    tiny.write_text(
        tiny.read_text().replace('"arcface"\nmargin = 0.2\nscale = 8.0', '"softmax"')
        + """
[evaluate]
scores = ["MSP", { name = "ash", share = 0.8 }, "knn:k=10", "ash:share=0.9"]
headline = { name = "knn", k = 10 }
"""
    )
    found = load(tiny)
    assert found.evaluate.scores == ["msp", "ash:share=0.8", "knn:k=10", "ash"]
    assert found.evaluate.headline == "knn:k=10"
    again = tiny.with_name("again.toml")
    again.write_text(found.to_toml())
    assert load(again).evaluate == found.evaluate
    for setting, message in (
        ('evaluate.scores=[{name="ash",shar=1}]', "evaluate.scores.0: ash has no option 'shar'; did you mean 'share'"),
        ("evaluate.headline=knn:k=x", "evaluate.headline: knn: k is a whole number"),
        (
            "evaluate.headline=knn:k=11",
            "headline: 'knn:k=11' is not among scores .msp, ash:share=0.8, knn:k=10, ash.",
        ),
    ):
        with pytest.raises(UserError, match=message):
            load(tiny, [setting])
    assert load(tiny, ["evaluate.headline=AUTO"]).evaluate.headline == "auto"
