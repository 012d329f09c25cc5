"""Settings that do nothing where they stand are told, and exposure that moves nothing is refused."""

import io
import tomllib

import pytest
import tomli_w
from rich.console import Console

import kood
from kood.errors import UserError
from kood.recipe import load
from kood.recipe.idle import idle_settings
from tests.conftest import TINY

FROZEN = "classifier.train=head"
LAST = "classifier.train=last"

#: A setting, what leaves it without effect, what is said, and what gives it one.
IDLE = [
    ('data.pictures.source="blobs"', (), 'only the augmentation "pixmix"', ('data.augment=["pixmix"]',)),
    ('data.augment=["flip"]', (FROZEN, "outliers.use=['noise']"), "classifier.views = 1", ("classifier.views=1",)),
    ('train.augment=["crop"]', (FROZEN,), "classifier.views", (LAST,)),
    (
        'data.augment=["flip"]', ('train.augment=["crop"]', "outliers.use=[]", "pure_samples.use=[]"),
        "train.augment stands in its place", ("outliers.use=['label_mixup']",),
    ),
    ('data.augment=["flip"]', (LAST, "fine_tuning.augment=[]", "outliers.use=[]"), "fine_tuning.augment stands",
     ("classifier.views=1",)),
    ('train.augment=["flip"]', (LAST, 'fine_tuning.augment=["crop"]'), "fine_tuning.augment stands",
     ("fine_tuning={epochs=2}",)),
    ("fine_tuning.learning_rate=0.1", (LAST, "fine_tuning.epochs=0"), "fine-tunes nothing", ("fine_tuning.epochs=1",)),
    ("outliers.reach=head", ("outliers.use=['virtual']",), "teach the head alone", ("outliers.use=['noise']",)),
    ("outliers.count=77", ("outliers.use=['virtual']",), "not drawn before", ("outliers.use=['cutmix', 'virtual']",)),
    ("outliers.count=77", ("outliers.use=['noise']", "outliers.noise.count=10"), "a count of its own",
     ("pure_samples.use=['augment']",)),
    ("train.auxiliary.weight=0.3", (), 'train.auxiliary.name = "rotation"', ("train.auxiliary.name=rotation",)),
    ("fine_tuning.epochs=9", (), 'only classifier.train = "last"', (LAST,)),
    ("data.hold_out.classes=0.5", ("data.hold_out.folds=[['1']]",), "remove it", ("data.hold_out.folds=2",)),
    ("outliers.mix_alpha=2.0", (), 'outliers.mix = "linear"', ("outliers.mix=cutmix",)),
    ("outliers.amplitude=swapped", ("outliers.use=['virtual']",), "virtual outliers have no", ("outliers=cutmix",)),
    ("outliers.amplitude=swapped", ("outliers.use=['noise']",), "noise outliers have no", ("outliers=cutmix",)),
    (
        "outliers.target=parents", ("outliers.use=['patch_shuffle', 'noise', 'amplitude_swap', 'virtual']",),
        "patch_shuffle and noise and amplitude_swap and virtual outliers are mixtures of no", ("outliers=cutmix",),
    ),
    (
        "outliers.label_mixup.alpha=2.0", ("outliers.label_mixup.weight=uniform",), 'label_mixup.weight = "beta"',
        ("outliers.label_mixup.weight=beta",),
    ),
    (
        "outliers.label_mixup.level=0.5", (), 'outliers.label_mixup.start = "image"',
        ("outliers.label_mixup.start=image",),
    ),
    ("pure_samples.level=0.5", (), 'pure_samples.start = "image"', ("pure_samples.start=image",)),
    ("pure_samples.count=9", (), "pure_samples.audit_count", ("pure_samples.use=['augment']",)),
    ("pure_samples.per_batch=9", (), '"id_rows"', ("pure_samples.use=['id_rows']",)),
    ("pure_samples.audit_count=9", ("pure_samples.use=['augment']",), "only the audit",
     ("pure_samples.use=['audit']",)),
    ("serve.undecodable=mark", ("serve.export=false",), "serve.export = false writes none", ("serve.export=true",)),
    ("budget.diffusion=0.3", (), "set budget.minutes", ("budget.minutes=5",)),
    ("budget.sampling=0.3", (), "set budget.minutes", ("outliers=none",)),
    ("classifier.frozen_statistics=true", (), "keeps no statistics", ("classifier.backbone=resnet8",)),
]  # fmt: skip


@pytest.mark.parametrize(("setting", "where", "told", "instead"), IDLE)
def test_a_setting_that_does_nothing_is_told_with_what_gives_it_effect(tiny, setting, where, told, instead):
    key = setting.partition("=")[0].removesuffix(".source")
    (note,) = (one for one in idle_settings(load(tiny, [*where, setting])) if one.startswith(f"{key} has no effect: "))
    assert told in note and "\n" not in note
    assert not idle_settings(load(tiny, [*where, setting, *instead]))


@pytest.mark.keras
def test_it_is_told_when_the_run_starts_and_kept_for_its_report(tiny, tmp_path, monkeypatch):
    kept = []

    def made(work):
        kept.extend(work.notes)
        raise UserError("enough")

    monkeypatch.setattr("kood.pipeline.make_cell", made)
    console = Console(file=io.StringIO(), width=500)
    with pytest.raises(UserError, match="enough"):
        kood.run(load(tiny, ["outliers.mix_alpha=2.0"]), saved=tmp_path, console=console)
    assert len(kept) == 1 and kept[0].startswith("outliers.mix_alpha has no effect: ")
    assert kept[0] in console.file.getvalue()


def test_one_cell_in_which_a_setting_does_something_is_enough(tiny):
    for setting, matrix in (
        ("outliers.target=parents", "matrix.outliers=['noise','label_mixup']"),
        ("train.auxiliary.weight=0.3", "matrix.train.auxiliary.name=['none','rotation']"),
        ("fine_tuning.epochs=9", "matrix.classifier.train=['all','last']"),
    ):
        assert not idle_settings(load(tiny, [setting, matrix]))
        assert len(idle_settings(load(tiny, [setting, "outliers.use=['noise']"]))) == 1


def test_tables_of_what_is_not_in_use_need_not_be_taken_out(tiny):
    unused = ["outliers.use=[]", "outliers.amplitude=swapped", "outliers.mix_alpha=2.0", "outliers.cutmix.alpha=2.0"]
    assert not idle_settings(load(tiny, [*unused, "pure_samples.count=9", "budget.diffusion=0.5", "diffusion.steps=7"]))


def test_a_printed_recipe_and_a_smoke_run_have_none(tiny, tmp_path):
    for quick in (False, True):
        (tmp_path / "again.toml").write_text(load(tiny, quick=quick).to_toml())
        again = load(tmp_path / "again.toml")
        assert again.quick == quick and not idle_settings(again)


def test_outliers_without_a_weight_expose_nothing(tiny):
    (note,) = idle_settings(load(tiny, ["outliers.weight=0"]))
    assert note.startswith("outliers.use: exposure to them has no effect: outliers.weight = 0")
    assert not idle_settings(load(tiny, ["outliers.weight=0", "outliers=none"]))
    assert not idle_settings(load(tiny, ["matrix.outliers.weight=[0.0, 0.5]"]))


@pytest.mark.parametrize(
    ("settings", "table", "gone"),
    [
        (["train={epochs=3}"], "train", "train.learning_rate of the recipe's file is left out"),
        (["train={epochs=3}", "train.learning_rate=0.1"], "train", ""),
        (["head=cosface"], "head", "head.margin, head.scale of the recipe's file are left out"),
        (["head={name='cosface', margin=0.1, scale=9.0}"], "head", ""),
        (["head.name=cosface"], "head", ""),
        (["evaluate={batch_size=9}"], "evaluate", "evaluate.headline.name, evaluate.headline.k of"),
        (["evaluate={headline='msp'}"], "evaluate", ""),
        (["evaluate.headline={name='msp'}"], "evaluate", ""),
        (["data.near={}"], "data.near", ""),
        (["data.near={other={source='digits', classes=[9]}}"], "data.near", "data.near.mine.source, data.near.mine."),
        (["matrix={seed=[0]}"], "matrix", "matrix.train.epochs of the recipe's file is left out"),
    ],
)  # fmt: skip
def test_a_table_of_the_command_line_says_what_it_took_away(tmp_path, settings, table, gone):
    file = tomllib.loads(TINY) | {
        "train": {"epochs": 1, "batch_size": 64, "learning_rate": 0.01},  # 64 is the default.
        "head": {"name": "arcface", "margin": 0.2, "scale": 8.0},
        "evaluate": {"headline": {"name": "knn", "k": 3}},
        "matrix": {"seed": [0, 1], "train.epochs": [1]},
    }
    file["data"]["near"] = {"mine": {"source": "digits", "classes": [8]}}
    if table != "matrix":
        del file["matrix"]
    (tmp_path / "it.toml").write_text(tomli_w.dumps(file))
    told = [note for note in idle_settings(load(tmp_path / "it.toml", settings)) if note.startswith("--set ")]
    assert [note.partition(" gives the whole table, so ")[0] for note in told] == [f"--set {table}"] * bool(gone)
    assert all(gone in note and "\n" not in note for note in told)
    assert "--set" not in "".join(idle_settings(load(tmp_path / "it.toml")))


def test_a_row_to_compare_with_needs_rows(tiny):
    (note,) = idle_settings(load(tiny, ["report.baseline={head='softmax'}"]))
    assert note.startswith("report.baseline has no effect: it names a row of a matrix, and there is none")


def test_rotations_are_learnt_in_fine_tuning(tiny):
    with pytest.raises(UserError, match="rotation.*fine_tuning.epochs is 0; raise it"):
        load(tiny, [LAST, "train.auxiliary=rotation", "fine_tuning.epochs=0"])


@pytest.mark.parametrize("more", [(), (LAST, "classifier.neck=8"), (FROZEN, "classifier.neck=8")])
def test_what_teaches_the_head_alone_needs_one_that_learns(tiny, more):
    cider = ["head={name='cider'}", "outliers.use=['noise']", *more]
    with pytest.raises(UserError, match="outliers.use: virtual outliers .* 'cider' .*take another head, or remove"):
        load(tiny, [*cider, "outliers.use=['noise','virtual']"])
    with pytest.raises(UserError, match=r'outliers.reach = "head" .* \'cider\' .*set outliers.reach = "all"'):
        load(tiny, [*cider, "outliers.reach=head"])
    for unexposed in ("outliers.use=[]", "outliers.weight=0.0"):
        load(tiny, [*cider, "outliers.reach=head", unexposed])
    assert load(tiny, cider).head.name == "cider"
    load(tiny, ["head=softmax", "head={name='softmax'}", "outliers.use=['virtual']", "outliers.reach=head", *more])


def test_exposure_needs_a_backbone_that_moves_where_the_head_does_not(tiny):
    still = ["head={name='cider'}", "outliers.use=['noise']", "classifier.backbone_rate=0.0"]
    with pytest.raises(
        UserError, match=r"backbone_rate = 0 leaves .* 'cider' has no weights .* raise classifier\.back"
    ):
        load(tiny, still)
    for moves in ("classifier.backbone_rate=0.1", "outliers.weight=0.0", "head={name='softmax'}"):
        load(tiny, [*still, moves])
    load(tiny, [*still, LAST, "classifier.neck=8"])


@pytest.mark.parametrize(
    ("setting", "matrix", "instead"),
    [
        ("seed=7", "seed = [0, 1]", "'matrix.seed=[7]'"),
        ("head=cosface", "head = ['softmax', 'arcface']", "'matrix.head=[\"cosface\"]'"),
        ("head.name=cosface", "head = ['softmax', 'arcface']", "'matrix.head=[...]'"),
        ("head.margin=0.3", "head = ['arcface', { name = 'cosface', margin = 0.2 }]", "'matrix.head=[...]'"),
        ("outliers=none", "outliers = ['none', 'noise']", "'matrix.outliers=[\"none\"]'"),
        ("outliers.use=['noise']", "outliers = ['none', 'pure']", "'matrix.outliers=[...]'"),
        ("train.epochs=3", "'train.epochs' = [1, 2]", "'matrix.train.epochs=[3]'"),
        ("train={epochs=3}", "'train.epochs' = [1, 2]", "'matrix.train.epochs=[...]'"),
        ("train.epochs=3", "arm = [{ train.epochs = 1 }, { train = { epochs = 2 } }]", "'matrix.arm=[...]'"),
    ],
)  # fmt: skip
def test_a_setting_that_every_cell_of_the_matrix_covers_is_refused(tiny, setting, matrix, instead):
    tiny.write_text(f"{tiny.read_text()}\n[matrix]\n{matrix}\n")
    with pytest.raises(UserError, match="every cell of the matrix sets") as refused:
        load(tiny, [setting])
    assert str(refused.value).startswith(f"--set {setting.partition('=')[0]}: ") and "\n" not in str(refused.value)
    assert str(refused.value).endswith(f"write --set {instead}")
    load(tiny, [setting, "matrix={}"])
    if "..." not in instead:
        load(tiny, [instead.strip("'")])


@pytest.mark.parametrize(
    ("file", "rows", "dropped"),
    [
        ({"margin": 0.3}, "head = ['arcface', 'cosface']", ["head.margin"]),
        ({"margin": 0.3}, "head = ['softmax', { name = 'arcface', margin = 0.3 }]", []),
        ({"margin": 0.3}, "'head.name' = ['arcface', 'cosface']", []),
        ({"mix": "linear", "per_batch": 3}, "outliers = [{ use = ['noise'] }, { use = ['cutmix'] }]", []),
        ({"mix": "linear", "per_batch": 64}, "arm = [{ name = 'a', outliers.mix = 'none' }, { name = 'b' }]", []),
        ({"per_batch": 3}, "outliers = ['none', 'noise']", []),
        ({"per_batch": 3}, "outliers = [{ use = [] }, { use = [], weight = 1.0 }]", []),
        ({"cutmix": {"alpha": 2.0}}, "outliers = [{ use = ['noise'] }, { use = ['pixel_mixup'] }]", []),
        ({"cutmix": {"alpha": 2.0}}, "outliers = [{ use = ['noise'] }, { use = ['cutmix'] }]", []),
    ],
)  # fmt: skip
def test_what_every_row_of_the_matrix_leaves_out_of_its_table_is_told(tmp_path, file, rows, dropped):
    settings = tomllib.loads(TINY) | {"matrix": tomllib.loads(rows)}
    if "margin" in file:
        settings["head"] = {"name": "arcface", **file}
    else:
        settings["outliers"] = {"use": [], **file}
    (tmp_path / "it.toml").write_text(tomli_w.dumps(settings))
    told = [note for note in idle_settings(load(tmp_path / "it.toml")) if "every cell of the matrix sets" in note]
    assert [note.partition(" has no effect: ")[0] for note in told] == dropped
    assert all(f"sets {key.partition('.')[0]} as a whole; give it in each row" in note
               for key, note in zip(dropped, told, strict=True))  # fmt: skip


def test_a_setting_that_some_cells_leave_alone_has_its_say(tiny):
    tiny.write_text(tiny.read_text() + "\n[matrix]\narm = [{ name = 'a' }, { name = 'b', train.epochs = 2 }]\n"
                    "outliers = ['none', 'pure']\n'head.margin' = [0.1, 0.3]\n")  # fmt: skip
    cells = load(tiny, ["train.epochs=1", "pure_samples.use=['id_rows']", "head=cosface"]).cells()
    assert [cell.train.epochs for _, cell in cells] == [1] * 4 + [2] * 4
    assert {cell.head.name for _, cell in cells} == {"cosface"}
