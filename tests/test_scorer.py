"""Whether so many images can determine a score is told before there is a classifier, and as its fit tells it after."""

import time
import tracemalloc

import numpy as np
import pytest

from kood import heads, registry
from kood.errors import UserError
from kood.recipe import load
from kood.scorer import Scorer, rehearse
from tests.conftest import TINY, Cell

SHIFTED = Scorer("adascale").inputs["shifted"]
FITTED = [name for name in registry.room("scores") if Scorer(name).is_fitted]


@pytest.mark.parametrize(
    ("name", "counts", "width", "message"),
    [
        ("knn", (25, 24), 8, "There are 49 features, fewer than k=50"),
        ("nnguide", (99, 0), 8, "There are 99 features, fewer than k=100"),
        ("nnguide:k=10", (9, 0), 8, "There are 9 features, fewer than k=10"),
        ("mahalanobis", (1, 1, 1), 8, "do not vary within any class"),
        ("relativemahalanobis", (1, 1, 1), 8, "do not vary within any class"),
        ("vim:dim=32", (16, 16), 64, "no residual outside their 32"),
        ("vim", (500, 500), 1, "dim must be from 1 to 0"),
        ("residual:dim=512", (300, 200), 768, "no residual outside their 512"),
        ("she", (5, 0, 5), 8, "there is none of 1 of the 3 classes; .* name another score"),
        ("openmax", (5, 0, 5), 8, "there is none of 1 of the 3 classes; .* name another score"),
        ("fdbd", (9,), 8, "at least 2 classes"),
        ("ash", (9, 9), 1, "leaves none"),
        ("scale", (9, 9), 1, "leaves none"),
    ],
)
def test_what_counts_alone_forbid_is_told(name, counts, width, message):
    with pytest.raises(ValueError, match=message):
        rehearse(name, counts, width, "Softmax", True)


def allowed(fit, *arguments):
    try:
        fit(*arguments)
    except (ValueError, UserError):
        return False
    return True


@pytest.mark.parametrize(
    ("name", "counts", "width"),
    [("knn", (25, 25), 8), ("nnguide", (100, 0), 8), ("nnguide:k=10", (10, 0), 8), ("mahalanobis", (2, 1, 1), 8),
     ("relativemahalanobis", (2, 1), 8), ("knn:k=5000", (5000, 1), 8),
     ("vim:dim=32", (17, 16), 64), ("residual:dim=512", (300, 213), 768),
     ("vim", (60, 57), 1280), ("residual", (3,), 1280), ("she", (1, 1, 1), 8), ("fdbd", (1, 1), 8),
     ("openmax", (1, 1, 1), 8), ("tempscale", (1,), 8), ("relation", (1,), 8), ("weiper", (1,), 1),
     ("klmatching", (1,), 8), ("msp", (1,), 8), ("odin", (1,), 8), ("adascale", (1,), 8)],
)  # fmt: skip
def test_what_they_allow_is_allowed(name, counts, width):
    assert allowed(rehearse, name, counts, width, "Softmax", True)


@pytest.mark.parametrize("name", FITTED)
def test_a_rehearsal_refuses_what_the_fit_refuses(name):
    """Random counts and widths, with another classifier's outputs, which calls every image by its name."""
    draw, told, refused = np.random.default_rng(5), 0, 0
    for _ in range(30):
        counts = tuple(int(n) for n in draw.integers(0, draw.choice([2, 4, 40]), size=draw.integers(2, 6)))
        width = int(draw.choice([1, 2, 5, 30]))
        if not sum(counts):
            continue
        labels = draw.permutation(np.repeat(np.arange(len(counts)), counts))
        head = heads.Softmax(len(counts))
        head.build((None, width))
        logits = (9 * np.eye(len(counts))[labels] + draw.random((len(labels), len(counts)))).astype("float32")
        features = draw.random((len(labels), width), np.float32) + 0.1
        outcomes = [
            allowed(rehearse, name, counts, width, "Softmax", True),
            allowed(Scorer(name).fit, {"features": features, "logits": logits, SHIFTED: features}, labels, head),
        ]
        assert outcomes[0] == outcomes[1], (counts, width)
        told, refused = told + 1, refused + (not outcomes[0])
    assert told > 20
    takes_all = {
        "react",
        "dice",
        "klmatching",
        "fdbd",
        "nci",
        "gradnorm",
        "relation",
        "tempscale",
        "weiper",
        "adascale",
    }
    assert refused > 0 or name in takes_all, f"{name} refuses none: add it to this list"


@pytest.mark.parametrize("name", ["knn", "nnguide", "mahalanobis", "vim"])
def test_many_images_are_rehearsed_with_few(name):
    tracemalloc.start()
    start = time.perf_counter()
    rehearse(name, (25_000, 24_999, 1), 1024, "Softmax", True)
    assert time.perf_counter() - start < 60
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # 50,000 x 1,024 float32 are 205 MB.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("evaluate.headline=KNN",), "evaluate.headline: knn cannot be fitted to the 8 training images of 4 classes"),
        (('evaluate.scores=["msp","nnguide"]',), "evaluate.scores: nnguide cannot be fitted.*more images.*kood list"),
        (
            ('evaluate.scores=["vim:dim=9"]', "evaluate.headline=vim:dim=9"),
            "evaluate.scores: vim:dim=9 cannot be fitted",
        ),
        (("data.id.per_class=1", "evaluate.headline=mahalanobis"), "do not vary within any class"),
    ],
)
def test_a_named_score_that_cannot_be_fitted_is_told_before_training(tmp_path, settings, message):
    (tmp_path / "tiny.toml").write_text(TINY)
    recipe = load(
        tmp_path / "tiny.toml", ("data.id.per_class=2", "train.batch_size=4", 'outliers.use=["noise"]', *settings)
    )
    cell = Cell(recipe, tmp_path / "saved", width=200)
    with pytest.raises(UserError, match=message) as caught:
        cell.check()
    assert caught.value.exit_code == 2
    assert [path.name[:4] for path in (tmp_path / "saved" / "stages").iterdir()] == ["data"]


def test_scores_that_nobody_named_are_not_insisted_on(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    recipe = load(tmp_path / "tiny.toml", ("data.id.per_class=2", "train.batch_size=4", 'outliers.use=["noise"]'))
    cell = Cell(recipe, tmp_path / "saved", width=200)
    cell.check()
    assert not allowed(rehearse, "knn", (8, 0), 8, "Softmax", True)  # One of those that such images cannot fit.
