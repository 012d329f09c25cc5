"""Recipes: what is accepted comes back complete; what is not gives one message that helps."""

import tomllib
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kood import registry
from kood.errors import UserError
from kood.recipe import Recipe, load, of_its_file
from kood.recipe.idle import idle_settings
from kood.recipe.settings import labels
from tests.conftest import TINY

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


def refused(tmp_path, text, *overrides):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "wrong.toml" in message or "--set" in message
    return message


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_are_valid_and_say_how_to_run(path):
    recipe = load(path)
    assert recipe.name == path.stem
    assert recipe.cells()
    header = [line for line in path.read_text().split("\n\n")[0].splitlines() if line.startswith("#")]
    text = " ".join(header)
    assert f"kood run recipes/{path.name}" in text
    for word in ("minute", "core"):
        assert word in text, f"{path.name}: the header names no {word}"
    quick = load(path, quick=True)
    assert quick.quick and quick.name.endswith("-quick") and quick.train.epochs <= 2


def test_a_shipped_recipe_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("digits_softmax").to_toml() == load(RECIPES[0].parent / "digits_softmax.toml").to_toml()
    Path("my_digits.toml").touch()
    for name, near in (("digits_softmx", "digits_softmax"), ("my_digit.toml", "my_digits.toml"), ("nope.toml", "")):
        hint = f"did you mean {near}[ ?].*" if near else ""
        with pytest.raises(UserError, match=f"^{name}: cannot read [^;]*; {hint}give .*`kood list recipes`"):
            load(name)
    Path("digits_softmax").write_text("seed = ", encoding="utf-8")  # A file of that name comes first.
    with pytest.raises(UserError, match="not valid TOML"):
        load("digits_softmax")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_resolved_recipe_reads_back_the_same(path, tmp_path):
    recipe = load(path)
    again = tmp_path / "again.toml"
    again.write_text(recipe.to_toml())
    assert load(again).model_dump() == recipe.model_dump()
    assert [labels for labels, _ in load(again).cells()] == [labels for labels, _ in recipe.cells()]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("epochs = 2", "epoch = 2"), ["train.epoch", "unknown key", "found 2", "did you mean 'epochs'"]),
        (("seed = 3", "seed = 3\nint = 1"), ["int: unknown key", "found 1"]),
        (("epochs = 2", "epochs = 2\nlist = [1]"), ["train.list: unknown key"]),
        (("epochs = 2", 'epochs = "two"'), ["train.epochs", "'two'", "integer"]),
        (("epochs = 2", "epochs = 2.0"), ["train.epochs", "2.0", "integer"]),
        (("epochs = 2", "epochs = true"), ["train.epochs", "true", "integer"]),
        (("epochs = 2", "epochs = 0"), ["train.epochs", "found 0", "greater than or equal to 1"]),
        (("[train]", "[pure_samples]\naudit_count = 1\n[train]"), ["pure_samples.audit_count", "equal to 2"]),
        (("epochs = 2", "learning_rate = nan"), ["train.learning_rate", "nan", "finite"]),
        (('name = "arcface"', 'name = "arkface"'), ["head", "arkface", "did you mean 'arcface'"]),
        (('name = "arcface"', 'name = "softmax"'), ["head", "margin", "softmax"]),
        (('name = "arcface"', 'name = "normface"'), ["head", "margin", "normface", "scale"]),
        (('name = "arcface"', 'name = "logitnorm"'), ["head", "margin", "logitnorm", "temperature"]),
        (("margin = 0.2", "sub_centers = 2"), ["head", "sub_centers", "'arcface' takes no"]),
        (('name = "arcface"', 'name = "subcenterarcface"\nsub_centers = 0'), ["head.sub_centers", "found 0", "1"]),
        (('name = "arcface"', 'name = "subcenterarcface"\nsub_centers = "3"'), ["head.sub_centers", "'3'", "integer"]),
        (('name = "arcface"', 'name = "curricularface"\nmomentum = 1.0'), ["head.momentum", "1.0", "less than 1"]),
        (('name = "arcface"', 'name = "adaface"\nh = 0.0'), ["head.h", "0.0", "greater than 0"]),
        (('source = "uniform"', 'source = "unifrom"'), ["data", "unifrom", "did you mean 'uniform'"]),
        (("[data.far.uniform]", "[data.far.near]"), ["data", "'near'"]),
        (("[data.far.uniform]", "[data.far.other_digits]"), ["other_digits", "both near and far"]),
        (('source = "uniform"', 'source = "gaussian"'), ["gaussian", "outliers.noise"]),
        (("[8, 8, 1]", "[8, 8, 2]"), ["data", "image_shape", "channels"]),
        (("[8, 8, 1]", "[8, 8]"), ["data.image_shape", "3 items"]),
        (("[8, 8, 1]", '[8, 8, 1]\nground = "blue"'), ["data.ground", "'blue'", "Allowed: black, grey, white"]),
        (("[8, 8, 1]", '[8, 8, 1]\nresize = "squash"'), ["data.resize", "'squash'", "Allowed: crop, pad, stretch"]),
        (("[8, 8, 1]", '[8, 8, 1]\nresize = "strech"'), ["data.resize", "did you mean 'stretch'"]),
        (("[8, 8, 1]", "[8, 8, 1]\nground = [0, 0, 256]"), ["data.ground", "256", "255"]),
        (("[8, 8, 1]", "[8, 8, 1]\nground = [0, 0]"), ["data.ground", "3 items"]),
        (("sampling_steps = 4", "sampling_steps = 60"), ["sampling_steps", "60", "num_steps", "50"]),
        (("sampling_steps = 4", "classes = 5"), ["outliers.label_mixup.classes", "5", "4"]),
        (("sampling_steps = 4", "guidance = 0.0"), ["outliers.label_mixup: guidance = 0", "no guidance is 1"]),
        (("[train]", "[pure_samples]\nguidance = 0.0\n[train]"), ["pure_samples: guidance = 0", "no guidance is 1"]),
        (("sampling_steps = 4", "weight = 1.5"), ["outliers.label_mixup.weight", "1.5"]),
        (("sampling_steps = 4", "weight = 0.0"), ["outliers.label_mixup", "weight = 0", "start = 'image'"]),
        (("sampling_steps = 4", "confidence = [0.5, 0.5]"), ["outliers.label_mixup", "low < high"]),
        (("sampling_steps = 4", "classes = 3\npairs = 'all'"), ["outliers.label_mixup", "two classes", "3"]),
        (("sampling_steps = 4", "groups = [[0, 1]]\npairs = 'all'"), ["outliers.label_mixup", "groups"]),
        (("[train]", "[pure_samples]\nsampling_steps = 60\n[train]"), ["pure_samples.sampling_steps", "60", "50"]),
        (("[train]", "[pure_samples]\nuse = ['id_rows', 'augment']\n[train]"), ["pure_samples", "keep one"]),
        (("[data.far.uniform]", "[data.validation_ood.other_digits]"), ["other_digits", "near and validation_ood"]),
        (("width = 32", "widht = 32"), ["diffusion", "widht", "did you mean 'width'"]),
        (('["label_mixup", "noise"]', '["label_mixup", "nose"]'), ["outliers.use", "nose", "did you mean 'noise'"]),
        (('["label_mixup", "noise"]', "[{}]"), ["outliers.use", "found {}", "Allowed: amplitude_swap"]),
        (('["label_mixup", "noise"]', '["real"]'), ["outliers", "real", "[outliers.real]"]),
        (("[train]", '[evaluate]\nheadline = "msb"\n[train]'), ["evaluate", "msb", "did you mean 'msp'"]),
        (("per_class = 30", "validation = 0.9"), ["data.id", "leave some images to train on"]),
        (("seed = 3", "seed = -1"), ["seed", "-1"]),
        (("seed = 3", "seed = 3\nname = '../up'"), ["name", "../up"]),
        (("seed = 3", "seed = 3\nmatrix = {seed = []}"), ["matrix.seed", "at least 1 item"]),
        (("seed = 3", "seed = 3\nmatrix = {'train.epohs' = [1]}"), ["matrix", "train.epohs", "did you mean 'epochs'"]),
        (("seed = 3", "seed = [3"), ["not valid TOML"]),
        (("[data.id]", "[data.di]"), ["data.id", "missing"]),
    ],
    ids=lambda change: change[1][:40] if isinstance(change, tuple) else None,
)
def test_each_mistake_is_named(tmp_path, change, expected):
    assert change[0] in TINY
    message = refused(tmp_path, TINY.replace(*change, 1))
    for part in expected:
        assert part in message, message
    assert "Traceback" not in message and "pydantic" not in message


def test_several_mistakes_are_listed_together(tmp_path):
    text = TINY.replace("epochs = 2", "epochs = 0").replace("per_batch = 16", "per_bach = 16")
    lines = refused(tmp_path, text).splitlines()
    assert len(lines) == 2 and all("wrong.toml" in line for line in lines)


def test_overrides(tiny):
    recipe = load(tiny, ["train.epochs=7", "head=cosface", "outliers.use=['noise']", "data.far.uniform.count=5"])
    assert recipe.train.epochs == 7
    assert (recipe.head.name, recipe.head.margin) == ("cosface", None)
    assert recipe.outliers.use == ["noise"]
    assert recipe.data.far["uniform"].count == 5
    with pytest.raises(UserError, match="KEY=VALUE"):
        load(tiny, ["train.epochs"])
    with pytest.raises(UserError, match=r"--set seed\.x: .*no table"):
        load(tiny, ["seed.x=1"])


def test_unreadable_files(tmp_path):
    for path, reason in ((tmp_path / "none.toml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=reason):
            load(path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        load(binary)


def test_matrix_cells(tiny):
    tiny.write_text(
        TINY
        + """
[matrix]
head = ["softmax", { name = "cosface", scale = 4.0, margin = 0.2 }]
outliers = ["none", ["label_mixup", "noise"]]
seed = [0, 1, 2]
"""
    )
    recipe = load(tiny)
    cells = recipe.cells()
    assert len(cells) == 12
    assert cells[0][0] == {"head": "softmax", "outliers": "none", "seed": "0"}
    assert cells[-1][0] == {"head": "cosface", "outliers": "label_mixup+noise", "seed": "2"}
    # A head given whole replaces the recipe's: softmax keeps nothing of ArcFace's margin.
    assert cells[0][1].head == Recipe.model_validate({**recipe.model_dump(exclude={"matrix", "head"})}).head
    assert cells[-1][1].head.options() == {"margin": 0.2, "scale": 4.0}
    assert cells[-1][1].seed == 2 and not cells[-1][1].matrix


def test_a_baseline_is_a_row_of_the_matrix(tiny):
    plain = tiny.read_text()
    tiny.write_text(plain + '[matrix]\noutliers = ["none", "noise"]\nseed = [0, 1]\n')
    recipe = load(tiny, ['report.baseline={outliers="none"}'])
    assert recipe.report.baseline == {"outliers": "none"} and len(recipe.cells()) == 4
    for baseline, expected in (
        ('{outliers="nonne"}', "report.baseline.outliers: no row of the matrix is called 'nonne'; did you mean 'none'"),
        ('{head="softmax"}', "report.baseline: 'head' is no key of the matrix"), ('{seed="0"}', "'seed' is no key"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=expected):
            load(tiny, [f"report.baseline={baseline}"])


def test_an_arm_changes_the_settings_it_names_and_no_others(tiny):
    tiny.write_text(
        TINY
        + """
[matrix]
arm = [
  { name = "nothing", outliers = "none" },
  { name = "samples beside images", outliers = "pure" },
  { name = "rows", outliers.use = ["noise"], "pure_samples.use" = ["id_rows"], train.epochs = 1, head = "cosface"},
]
"""
    )
    recipe = load(tiny)
    nothing, pure, rows = (cell for _, cell in recipe.cells())
    assert [labels["arm"] for labels, _ in recipe.cells()] == ["nothing", "samples beside images", "rows"]
    assert nothing.outliers.use == [] and not nothing.needs_diffusion
    assert pure.outliers.use == [] and pure.needs_diffusion and "augment" in pure.pure_samples.use
    assert rows.outliers.use == ["noise"] and rows.pure_samples.use == ["id_rows"] and rows.train.epochs == 1
    assert rows.outliers.label_mixup == recipe.outliers.label_mixup and rows.head.options() == {}
    assert rows.outliers.per_batch == recipe.outliers.per_batch and rows.train.batch_size == recipe.train.batch_size


@pytest.mark.parametrize(
    ("base", "row", "key"),
    [
        ("evaluate.headline = 'msp'", "'evaluate.headline' = ['energy', { name = 'knn', k = 10 }]", "headline"),
        ("", "'evaluate.headline' = ['energy', { name = 'knn', k = 10 }]", "headline"),
        ("evaluate.headline = { name = 'gen', gamma = 0.2 }",
         "'evaluate.headline' = [{ name = 'knn', k = 10 }, 'msp']", "headline"),
        ("train.class_weight = 'balanced'", "'train.class_weight' = ['balanced', { 0 = 2.0 }]", "class_weight"),
        ("train.class_weight = { 0 = 2.0, 1 = 3.0 }", "'train.class_weight' = [{ 0 = 3.0 }]", "class_weight"),
        ("", "train = [{ class_weight = { '1.5' = 2.0 } }]", "class_weight"),
        ("data.near = { a = { source = 'uniform', count = 9 } }",
         "'data.near' = [{ 'v1.5' = { source = 'uniform', count = 5 } }]", "near"),
    ],
)  # fmt: skip
def test_a_value_of_a_row_that_is_a_table_is_whole_and_can_be_written(tmp_path, base, row, key):
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text(f"name = 'a'\ndata.image_shape = [8, 8, 1]\ndata.id.source = 'digits'\n{base}\n[matrix]\n{row}\n")
    recipe = load(first)
    second.write_text(recipe.to_toml())

    def values(recipe):
        section = {"headline": "evaluate", "class_weight": "train", "near": "data"}[key]
        return [getattr(getattr(cell, section), key) for _, cell in recipe.cells()]

    (asked,) = tomllib.loads(row).values()
    found = values(recipe)
    assert values(load(second)) == found and len(found) == len(asked)
    match key:
        case "headline":
            assert "knn:k=10" in found
        case "class_weight":
            assert found == [one["class_weight"] if row.startswith("train =") else one for one in asked]
        case _:
            assert [list(one) for one in found] == [["v1.5"]]


def test_the_order_of_the_keys_of_a_matrix_decides_nothing(tiny):
    plain = tiny.read_text()
    lines = ['"head.margin" = [0.1, 0.3]', 'head = ["arcface", "cosface"]']
    found = []
    for rows in (lines, lines[::-1]):
        tiny.write_text(plain + "[matrix]\n" + "\n".join(rows) + "\n")
        found.append(sorted((cell.head.name, cell.head.margin) for _, cell in load(tiny).cells()))
    assert found[0] == found[1] == [(head, margin) for head in ("arcface", "cosface") for margin in (0.1, 0.3)]


def test_a_table_in_a_row_changes_the_keys_that_it_names_and_no_others(tiny):
    given = "outliers.noise.scale=0.9", "outliers.exposure=energy_exposure", "outliers.count=60"
    rows = 'outliers = ["noise", { use = ["noise"], weight = 0.1, noise.count = 30 }]'
    tiny.write_text(tiny.read_text() + f"[matrix]\n{rows}\n")
    recipe = load(tiny, given)
    (_, by_name), (_, by_table) = recipe.cells()
    assert by_table.outliers.weight == 0.1 and by_table.outliers.noise.count == 30
    changed = {"weight": by_name.outliers.weight, "noise": by_name.outliers.noise}
    assert by_table.outliers.model_copy(update=changed) == by_name.outliers and by_name.outliers.noise.scale == 0.9
    assert [labels["outliers"] for labels, _ in recipe.cells()] == ["noise", "noise weight=0.1 noise={'count': 30}"]
    assert not [note for note in idle_settings(recipe) if "whole" in note]


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ("train = [{ epochs = 1 }, { epochs = 3 }]", [(1, 5), (3, 5)]),
        ("arm = [{ train.epochs = 1 }, { train = {} }]", [(1, 5), (30, 64)]),
    ],
)
def test_an_empty_table_empties_and_another_keeps_what_it_does_not_name(tiny, rows, found):
    tiny.write_text(tiny.read_text() + f"[matrix]\n{rows}\n")
    cells = [cell for _, cell in load(tiny, ["train.batch_size=5"]).cells()]
    assert [(cell.train.epochs, cell.train.batch_size) for cell in cells] == found


def test_a_head_that_is_named_is_whole_and_one_that_is_not_changes_the_recipes(tiny):
    tiny.write_text(tiny.read_text() + "[matrix]\nhead = ['cosface', { margin = 0.3 }, { name = 'arcface' }]\n")
    cells = [cell.head for _, cell in load(tiny, ["head={name='arcface', scale=16.0}"]).cells()]
    assert [(head.name, head.options()) for head in cells] == [
        ("cosface", {}), ("arcface", {"margin": 0.3, "scale": 16.0}), ("arcface", {})
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ('"train.epochs" = [1, 2]\narm = [{ train.epochs = 3 }, { name = "b" }]', "'arm' both set train.epochs"),
        ('arm = [{ head = "cosface" }]\nhead = ["softmax"]', "'arm' and 'head' both set head.name"),
        ('outliers = ["none", "noise"]\n"outliers.use" = [["noise"]]', "both set outliers.use"),
        ('outliers = ["pure"]\n"pure_samples.use" = [["id_rows"]]', "both set pure_samples.use"),
        ('head = [{ name = "arcface", margin = 0.2 }]\n"head.margin" = [0.1]', "both set head.margin"),
        ('"budget.minutes" = [1.0, 2.0]', "matrix.budget.minutes: budget.minutes is the whole run's"),
        ('arm = [{ report.leaderboard = true }]', "matrix.arm: report.leaderboard is the whole run's"),
        ('name = ["a", "b"]', "matrix.name: name is the whole run's"),
    ],
)  # fmt: skip
def test_a_row_that_would_be_covered_or_has_no_say_is_refused(tiny, rows, told):
    tiny.write_text(tiny.read_text() + f"[matrix]\n{rows}\n")
    with pytest.raises(UserError, match=told) as refused:
        load(tiny)
    assert "\n" not in str(refused.value)


def test_mixing_outliers_with_images(tiny):
    assert load(tiny).outliers.mix == "none"
    assert load(tiny, ["outliers.mix=cutmix", "outliers.mix_alpha=0.5"]).outliers.mix_alpha == 0.5
    for exposure in ("cosine_exposure", "energy_exposure"):
        setting = f"outliers.exposure={exposure}"
        with pytest.raises(UserError, match=f"outliers: mix = 'linear'.*{exposure}.*take outlier_exposure, or mix"):
            load(tiny, ["outliers.mix=linear", setting])
        assert load(tiny, ["outliers.mix=linear", setting, "outliers.use=[]"]).outliers.exposure == exposure
    with pytest.raises(UserError, match="outliers: mix = 'linear' mixes images, and virtual outliers are none"):
        load(tiny, ["outliers.mix=linear", "outliers.use=['virtual']"])
    with pytest.raises(UserError, match="outliers.mix: found 'mixup'; .*Allowed: cutmix, linear, none"):
        load(tiny, ["outliers.mix=mixup"])
    with pytest.raises(UserError, match="outliers.mix_alpha: found 0.0"):
        load(tiny, ["outliers.mix_alpha=0.0"])


@pytest.mark.keras
@pytest.mark.parametrize("name", registry.room("heads"))
def test_cosines_are_for_the_heads_that_have_them(tmp_path, name):
    """As the imported class says, though the recipe is checked without importing it."""
    from kood import heads

    entry = registry.room("heads")[name]
    angular = issubclass(getattr(heads, entry.attribute), heads.AngularHead)
    path = tmp_path / "cosines.toml"
    path.write_text(TINY.replace('name = "arcface"\nmargin = 0.2\nscale = 8.0', f'name = "{name}"'))
    for setting in ('outliers.exposure="cosine_exposure"', 'evaluate.scores=["max_cosine"]'):
        if angular:
            assert load(path, [setting]).head.name == name
        else:
            with pytest.raises(UserError, match=f"cosines; head '{name}' has none"):
                load(path, [setting])


def test_the_options_of_a_head(tiny):
    given = ["head.sub_centers=2", "head.name=subcenterarcface"]
    assert load(tiny, given).head.options() == {"margin": 0.2, "scale": 8.0, "sub_centers": 2}
    for name, options in (
        ("curricularface", {"momentum": 0.9}),
        ("adaface", {"h": 0.5, "momentum": 0.0}),
        ("logitnorm", {"temperature": 0.1}),
        ("t2fnorm", {"temperature": 0.1}),
        ("normface", {"scale": "auto"}),
    ):
        settings = ", ".join(f"{key} = {value!r}" for key, value in options.items())
        assert load(tiny, [f"head={{name = '{name}', {settings}}}"]).head.options() == options


@pytest.mark.parametrize("train", ["head", "last"])
def test_a_head_without_weights_that_learn_needs_a_neck_after_a_frozen_backbone(tiny, train):
    given = ["head={name = 'cider'}", f"classifier.train={train}", "outliers.use=[]"]
    with pytest.raises(UserError, match="head 'cider' has no weights that learn.*classifier.neck"):
        load(tiny, given)
    assert load(tiny, [*given, "classifier.neck=16"]).classifier.neck == 16


def test_a_wrong_cell_is_refused_before_the_run(tiny):
    tiny.write_text(TINY + '\n[matrix]\nhead = ["arcface", "softmax"]\n[evaluate]\nscores = ["max_cosine"]\n')
    with pytest.raises(UserError, match="head = softmax.*max_cosine.*cosines"):
        load(tiny)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("outliers = [true, false]", "cell (outliers = True): outliers: found true; it is a table"),
        ('"outliers.use" = ["noise", "cutmix"]', "cell (outliers.use = noise): outliers.use: found 'noise'"),
        ("outliers = [[1], [2]]", "cell (outliers = 1): outliers.use.0: found 1"),
    ],
)
def test_a_cell_whose_outliers_are_none_is_one_message(tiny, line, told):
    tiny.write_text(f"{TINY}\n[matrix]\n{line}\n")
    with pytest.raises(UserError) as caught:
        load(tiny)
    assert told in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_smoke_run_is_one_whatever_its_matrix_asks_for(tiny, tmp_path):
    arms = [
        '{ name = "long", train.epochs = 200, outliers.label_mixup.sampling_steps = 40 }',
        '{ name = "samples", outliers = "pure", pure_samples.count = 900, pure_samples.sampling_steps = 40 }',
    ]
    tiny.write_text(f'{TINY}\n[matrix]\n"train.batch_size" = [8, 64]\nseed = [0, 1]\narm = [{", ".join(arms)}]\n')
    whole, quick = load(tiny), load(tiny, quick=True)
    told = [which for which, _ in quick.cells()]
    assert told == [which for which, _ in whole.cells() if which["seed"] == "0"] and len(told) == 4
    for which, cell in quick.cells():
        assert cell.quick and cell.name == "tiny-quick" and cell.train.epochs == 2
        assert cell.train.batch_size == {"8": 8, "64": 32}[which["train.batch_size"]]
        assert cell.outliers.label_mixup.sampling_steps == cell.pure_samples.sampling_steps == 4
        assert cell.pure_samples.count == 64
    assert [cell.train.epochs for _, cell in whole.cells()[:2]] == [200, 2]
    again = tmp_path / "again.toml"
    again.write_text(quick.to_toml())
    assert [cell.model_dump() for _, cell in load(again).cells()] == [cell.model_dump() for _, cell in quick.cells()]


def test_a_smoke_run_has_the_budgets_of_its_matrix(tiny):
    tiny.write_text(TINY.replace("steps = 20", "", 1) + '\n[matrix]\n"diffusion.epochs" = [0.5, 50.0]\n')
    assert [cell.diffusion.budget for _, cell in load(tiny, quick=True).cells()] == [("epochs", 0.5), ("epochs", 1.0)]


@pytest.mark.parametrize("score", ["ReAct", "ash", "scale", "dice", "fdbd"])
def test_a_score_of_a_linear_head_is_refused_under_an_angular_one(tiny, score):
    tiny.write_text(TINY + f'\n[evaluate]\nscores = ["{score}"]\n')
    with pytest.raises(UserError, match=f"score '{score.lower()}' reworks a linear head; head 'arcface' is angular"):
        load(tiny)
    tiny.write_text(tiny.read_text().replace('"arcface"', '"softmax"').replace("margin = 0.2\nscale = 8.0\n", ""))
    assert load(tiny).evaluate.scores == [score.lower()]


@pytest.mark.parametrize(
    ("line", "budget", "quick"),
    [
        ("", ("steps", 2000), ("steps", 20)),
        ("steps = 7", ("steps", 7), ("steps", 7)),
        ("epochs = 0.5", ("epochs", 0.5), ("epochs", 0.5)),
        ("epochs = 40.0", ("epochs", 40.0), ("epochs", 1.0)),
        ("epochs = 3", ("epochs", 3.0), ("epochs", 1.0)),
        ("minutes = 60", ("minutes", 60.0), ("minutes", 0.1)),
        ("minutes = 0.05", ("minutes", 0.05), ("minutes", 0.05)),
    ],
)
def test_the_budget_of_the_diffusion_model(tmp_path, line, budget, quick):
    path = tmp_path / "budget.toml"
    path.write_text(TINY.replace("steps = 20", line, 1))
    assert load(path).diffusion.budget == budget
    assert load(path, quick=True).diffusion.budget == quick


@pytest.mark.parametrize("line", ["minutes = 5.0", "epochs = 2.0", "epochs = 2.0\nminutes = 5.0"])
def test_two_budgets_are_one_message(tmp_path, line):
    path = tmp_path / "budget.toml"
    path.write_text(TINY.replace("steps = 20", f"steps = 20\n{line}", 1))
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and "budget.toml: diffusion: found steps = 20 and" in message
    assert line.replace("\n", " and ") in message and "give only one of steps, epochs and minutes" in message


@pytest.mark.parametrize("line", ["minutes = 0.0", "epochs = -1.0", "steps = 0", "min_snr = 0.0", 'precision = "fast"'])
def test_a_budget_is_positive(tmp_path, line):
    path = tmp_path / "budget.toml"
    path.write_text(TINY.replace("steps = 20", line, 1))
    with pytest.raises(UserError, match=f"diffusion.{line.split()[0]}"):
        load(path)


toml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_value_anywhere_makes_anything_but_a_recipe_or_a_message(tmp_path, invoke, data):
    import tomllib

    import tomli_w

    tree = tomllib.loads(TINY)
    tables = [tree]
    for table in tables:
        tables += [v for v in table.values() if isinstance(v, dict)]
    table = data.draw(st.sampled_from(tables))
    key = data.draw(st.sampled_from(sorted(table)) | st.text(min_size=1, max_size=8))
    value = data.draw(toml_values.filter(_is_toml))
    table[key] = value
    path = tmp_path / "fuzzed.toml"
    path.write_text(tomli_w.dumps(tree), encoding="utf-8")
    try:
        assert isinstance(load(path), Recipe)
    except UserError as error:
        assert "fuzzed.toml" in str(error) and "Traceback" not in str(error)
        refused = invoke("run", "fuzzed.toml", cwd=tmp_path)
        assert refused.returncode == 2 and "Traceback" not in refused.stderr
        assert [file.name for file in tmp_path.iterdir()] == ["fuzzed.toml"]


def _is_toml(value):
    if value is None:
        return False
    if isinstance(value, list):
        return all(map(_is_toml, value))
    if isinstance(value, dict):
        return all(map(_is_toml, value.values()))
    return not isinstance(value, str) or all(c.isprintable() for c in value)


@pytest.mark.parametrize(
    ("source", "setting", "expected"),
    [
        ("pixel_mixup", "outliers.pixel_mixup.weight=0.0", "pixel_mixup: weight = 0 leaves the first image out"),
        ("cutmix", "outliers.cutmix.weight=0.0", "outliers.cutmix: weight = 0 leaves the first image out"),
        ("patch_shuffle", "outliers.patch_shuffle.grid=9", r"patch_shuffle.grid is 9.*8x8 pixels"),
    ],
)
def test_an_outlier_that_would_be_none_is_refused(tiny, source, setting, expected):
    with pytest.raises(UserError, match=expected):
        load(tiny, [f'outliers.use=["{source}"]', setting])


def test_guidance_needs_images_that_are_learnt_without_a_label(tiny):
    for table in ("outliers.label_mixup", "pure_samples"):
        with pytest.raises(UserError, match=rf"{table}.guidance = 3 .*label_dropout is 0; raise it .*guidance = 1"):
            load(tiny, ["diffusion.label_dropout=0", f"{table}.guidance=3.0"])
        assert load(tiny, [f"{table}.guidance=3.0"])
    load(tiny, ["diffusion.label_dropout=0"])
    # Nothing is drawn by it.
    load(tiny, ["diffusion.label_dropout=0", "outliers.use=['noise']", "pure_samples.guidance=3.0"])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["outliers.exposure='energy_exposure'"], "target = 'parents' asks for shares of a class"),
        (["outliers.label_mixup.start='image'", "outliers.label_mixup.weight=0.0"], "label_mixup.weight = 0"),
        (["outliers.label_mixup.weight=-0.5"], "label_mixup.weight = -0.5"),
    ],
)
def test_targets_that_do_not_fit_are_refused(tiny, settings, expected):
    assert load(tiny, ["outliers.target='parents'"]).outliers.target == "parents"
    with pytest.raises(UserError, match=expected):
        load(tiny, ["outliers.target='parents'", *settings])


@pytest.mark.parametrize("name", ["validation", "calibration", "near"])
def test_a_validation_set_cannot_take_the_name_of_another(tiny, name):
    with pytest.raises(UserError, match=f"'{name}' cannot name a data set"):
        load(tiny, [f'data.validation_ood.{name}.source="blobs"'])


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("{}", "data.id.group: found nothing; give one of folder, pattern and column"),
        ("{ folder = 1, column = 'x' }", "data.id.group: found folder = 1 and column = 'x'; give one of"),
        ("{ folder = 0 }", "data.id.group.folder: found 0"),
        ("{ pattern = '(' }", "data.id.group: pattern: '(' is no regular expression"),
        ("{ patient = 'x' }", "data.id.group.patient: unknown key"),
    ],
)
def test_a_group_key_is_one_of_three(tmp_path, group, expected):
    assert expected in refused(tmp_path, TINY, f"data.id.group={group}")


def test_a_recipe_keeps_names_composed(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    path = tmp_path / "x.toml"
    path.write_text(TINY.replace("[data.id]", f'[data.id]\npath = "/{decomposed}"'), encoding="utf-8")
    recipe = load(path, [f'data.id.classes=["{decomposed}", "tea"]'])
    assert recipe.data.id.path == f"/{composed}" and recipe.data.id.classes == [composed, "tea"]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("data.id.path: there is nothing", "{file}: data.id.path: there is nothing"),
        ("fine_tuning: no", "{file}: fine_tuning: no"),
        ("datasets: no key", "datasets: no key"), ("saved/x cannot be written", "saved/x cannot be written"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_key_is_told_with_the_file(tiny, message, told):
    with pytest.raises(UserError) as refused, of_its_file(load(tiny)):
        raise UserError(message, exit_code=1)
    assert str(refused.value) == told.format(file=tiny) and refused.value.exit_code == 1
    with pytest.raises(UserError) as refused, of_its_file(Recipe.model_validate(load(tiny).model_dump())):
        raise UserError(message)
    assert str(refused.value) == message


def test_settings_of_one_name_are_told_apart_by_their_options():
    several = ["softmax", {"name": "cosface", "margin": 0.1, "scale": 16.0}, {"name": "adacos"}]
    assert labels(several) == ["softmax", "cosface", "adacos"]
    assert labels([*several, "cosface"]) == ["softmax", "cosface margin=0.1 scale=16.0", "adacos", "cosface"]
    assert labels(["cosface", {"name": "cosface"}]) == ["'cosface'", "{'name': 'cosface'}"]
    assert labels([["noise", "cutmix"], [], "pure"]) == ["noise+cutmix", "none", "pure"]
