"""Settings that would do nothing where they stand are refused, and so is exposure that moves nothing."""

import pytest

from kood.errors import UserError
from kood.recipe import load

FROZEN = "classifier.train=head"
LAST = "classifier.train=last"


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


def test_a_setting_that_some_cells_leave_alone_has_its_say(tiny):
    tiny.write_text(tiny.read_text() + "\n[matrix]\narm = [{ name = 'a' }, { name = 'b', train.epochs = 2 }]\n"
                    "outliers = ['none', 'pure']\n'head.margin' = [0.1, 0.3]\n")  # fmt: skip
    cells = load(tiny, ["train.epochs=1", "pure_samples.use=['id_rows']", "head=cosface"]).cells()
    assert [cell.train.epochs for _, cell in cells] == [1] * 4 + [2] * 4
    assert {cell.head.name for _, cell in cells} == {"cosface"}
