"""Sampling as a job: blocks, shards, stops and starts, and image starts against NumPy."""

import json

import numpy as np
import pytest
from keras import ops

from kood.data.images import normalize, quantize
from kood.diffusion import label_mixup, samplers, sampling, schedule
from kood.diffusion.sampling import ImageSampler, Start, draw_rows
from kood.errors import UserError

pytestmark = pytest.mark.backend  # Run once under each Keras backend.

SHAPE = (2, 2, 1)


def rng(seed=0):
    return np.random.default_rng(seed)


def mixtures(count, total, *, weight=0.5, rng):
    return label_mixup.condition_rows(label_mixup.choose_classes(count, total, rng=rng), total, weight=weight, rng=rng)


class Recorded:
    """Stands in for a denoiser and counts what it is asked."""

    alpha_bar = schedule.cosine(40)

    def __init__(self):
        self.rows = []

    def __call__(self, inputs, training=False):
        self.rows.append(inputs["image"].shape[0])
        return 0.1 * inputs["image"] + inputs["condition"][:, :1, None, None]


@pytest.fixture(autouse=True)
def plain_forward(monkeypatch):
    monkeypatch.setattr(sampling, "compiled", lambda model: model)


def sampler_of(model=None, **how):
    how = {"sampler": samplers.ddim, "num_steps": 3, "seed": 5, "batch_size": 4, "clip": None, **how}
    return ImageSampler(model or Recorded(), SHAPE, **how)


def shards(folder, condition, model=None, start=None, **how):
    made = [shard.images for shard in sampler_of(model, **how).shards(folder, condition, start=start)]
    return np.concatenate(made)


@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.ddpm, samplers.dpm_solver])
def test_blocks_have_one_shape_and_are_reproducible(sampler):
    condition = mixtures(11, 3, rng=rng())
    model, done = Recorded(), []
    images = sampler_of(model, sampler=sampler).images(condition, progress=done.append)
    assert images.shape == (11, 2, 2, 1) and images.dtype == np.float32 and np.isfinite(images).all()
    assert set(model.rows) == {4} and done == [4, 8, 11]
    np.testing.assert_array_equal(images, sampler_of(sampler=sampler).images(condition))
    # A shorter job gives the same first images: a block knows nothing of those before it.
    np.testing.assert_array_equal(images[:4], sampler_of(sampler=sampler).images(condition[:4]))
    assert len(np.unique(images[:, 0, 0, 0])) == 11
    other = sampler_of(sampler=sampler, seed=6).images(condition)
    assert not np.array_equal(images, other)


def test_given_start_noise_is_used():
    condition = label_mixup.interpolation(3, np.array([[0, 1], [2, 1]]), 4).reshape(8, 3)
    noise = np.repeat(rng().normal(size=(2, 2, 2, 1)), 4, axis=0)
    got = sampler_of(batch_size=3).images(condition, noise=noise)
    one = samplers.ddim(
        label_mixup.noise_predictor(Recorded(), condition[5:6]),
        Recorded.alpha_bar,
        ops.convert_to_tensor(noise[5:6].astype("float32")),
        3,
    )
    np.testing.assert_allclose(got[5:6], ops.convert_to_numpy(one), rtol=1e-5)


@pytest.mark.parametrize(("count", "batch_size", "size"), [(1, 256, 8), (9, 256, 16), (300, 256, 256), (5, 3, 3)])
def test_a_small_job_has_small_blocks(count, batch_size, size):
    model = Recorded()
    sampler = sampler_of(model, batch_size=batch_size)
    assert sampler.images(np.eye(3, dtype="float32")[np.zeros(count, int)]).shape[0] == count
    assert set(model.rows) == {size} and len(model.rows) == 3 * sampler.blocks_of(count)


def test_groups_of_different_size_make_blocks_of_one_shape():
    condition = np.array([[0.5, 0.5, 0]] * 4 + [[0.2, 0.3, 0.5]] * 4, "float32")
    model = Recorded()
    sampler_of(model, mix="prediction", guidance=2.0).images(condition)
    assert set(model.rows) == {4 * (3 + 1)}


def test_shards_hold_what_is_sampled_in_memory(tmp_path):
    condition = mixtures(11, 3, rng=rng())
    expected = quantize(sampler_of().images(condition))
    np.testing.assert_array_equal(shards(tmp_path, condition), expected)
    names = [f"shard-0000{block}" for block in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}{ending}" for name in names for ending in (".json", ".npy")
    )
    last = np.load(tmp_path / "shard-00002.npy")
    assert last.dtype == np.uint8 and len(last) == 3
    # A job that goes on from another has blocks of its own.
    more = np.concatenate([s.images for s in sampler_of().shards(tmp_path, condition, first_block=3)])
    assert (tmp_path / "shard-00005.npy").exists() and not np.array_equal(more, expected)


@pytest.mark.parametrize("sampler", [samplers.ddpm, samplers.dpm_solver])
@pytest.mark.parametrize("level", [None, 0.5])
def test_a_job_killed_in_the_middle_of_a_block_ends_as_if_it_had_not_been(tmp_path, sampler, level):
    condition = mixtures(14, 3, rng=rng())
    start = level and Start(rng(1).integers(0, 256, (6, *SHAPE), dtype=np.uint8), np.arange(14) % 6)
    how = {"sampler": sampler, "level": level, "clip": 1.0}
    whole = shards(tmp_path / "whole", condition, start=start, **how)
    calls = []

    def stop(images):
        calls.append(images)
        if len(calls) == 8:  # The second step of the third block.
            raise KeyboardInterrupt

    broken = sampler_of(**how).shards(tmp_path / "cut", condition, start=start, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        list(broken)
    assert calls[:3] == pytest.approx([4 / 3, 8 / 3, 4])
    assert sorted(path.name for path in (tmp_path / "cut").glob("*.npy")) == ["shard-00000.npy", "shard-00001.npy"]
    model = Recorded()
    np.testing.assert_array_equal(shards(tmp_path / "cut", condition, model, start=start, **how), whole)
    assert len(model.rows) == 2 * 3  # Two blocks of three steps were left.
    for path in (tmp_path / "whole").glob("*.npy"):
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()


def truncated(path):
    path.write_bytes(path.read_bytes()[:-3])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def empty_record(path):
    path.with_suffix(".json").write_text("")


def wrong_record(path):
    path.with_suffix(".json").write_text(json.dumps(["no", "record"]))


def no_record(path):
    path.with_suffix(".json").unlink()


def missing(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncated, flipped, empty_record, wrong_record, no_record, missing])
def test_a_damaged_shard_is_made_again(tmp_path, damage):
    condition = mixtures(12, 3, rng=rng())
    whole = shards(tmp_path, condition)
    before = (tmp_path / "shard-00001.npy").read_bytes()
    damage(tmp_path / "shard-00001.npy")
    model = Recorded()
    np.testing.assert_array_equal(shards(tmp_path, condition, model), whole)
    assert len(model.rows) == 3 and (tmp_path / "shard-00001.npy").read_bytes() == before
    model = Recorded()
    shards(tmp_path, condition, model)
    assert not model.rows


def test_a_shard_of_another_job_is_not_taken(tmp_path):
    condition = mixtures(4, 3, rng=rng())
    shards(tmp_path, condition)
    for change in ({"seed": 6}, {"num_steps": 4}, {"guidance": 2.0}, {"clip": 1.0}, {"sampler": samplers.ddpm}):
        model = Recorded()
        shards(tmp_path, condition, model, **change)
        assert model.rows, change
        shards(tmp_path, condition)
    model = Recorded()
    shards(tmp_path, condition[::-1].copy(), model)
    assert model.rows
    starts = [Start(np.full((4, *SHAPE), value, np.uint8), np.arange(4)) for value in (0, 9)]
    for start in starts:
        model = Recorded()
        shards(tmp_path, condition, model, start=start, level=0.5)
        assert model.rows


def test_images_that_are_no_numbers_stop_the_job(tmp_path):
    class Diverged(Recorded):
        def __call__(self, inputs, training=False):
            return inputs["image"] * np.float32(np.nan)

    with pytest.raises(UserError, match=r"diffusion\.learning_rate") as error:
        shards(tmp_path, np.eye(3, dtype="float32"), Diverged())
    assert error.value.exit_code == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("level", "num_steps"), [(1.0, 40), (1.0, 7), (0.6, 5), (0.3, 12), (0.01, 1)])
def test_an_image_start_is_ddim_from_the_noised_image(level, num_steps):
    alpha_bar = schedule.cosine(40)
    pixels = rng(1).integers(0, 256, (5, *SHAPE), dtype=np.uint8)
    condition = mixtures(3, 3, weight="uniform", rng=rng(2))
    rows, noise = np.array([4, 0, 4]), rng(3).normal(size=(3, *SHAPE)).astype("float32")
    got = sampler_of(level=level, num_steps=num_steps).images(condition, noise=noise, start=Start(pixels, rows))

    t = round(level * 39)
    a = alpha_bar[t]
    x = np.sqrt(a) * (pixels[rows] / 127.5 - 1.0) + np.sqrt(1 - a) * noise.astype("float64")
    nodes = [round((t + 1) * (1 - i / num_steps)) - 1 for i in range(num_steps)]
    assert nodes[0] == t
    for now, after in zip(nodes, [*nodes[1:], None], strict=True):
        a, b = alpha_bar[now], 1.0 if after is None else alpha_bar[after]
        e = 0.1 * x + condition[:, :1, None, None].astype("float64")
        x = np.sqrt(b) * (x - np.sqrt(1 - a) * e) / np.sqrt(a) + np.sqrt(1 - b) * e
    np.testing.assert_allclose(got, x, rtol=2e-3, atol=2e-3 * np.abs(x).max())


def test_a_low_level_leaves_the_image_and_its_own_noise():
    pixels = rng(1).integers(0, 256, (4, *SHAPE), dtype=np.uint8)
    sampler = sampler_of(level=0.01, num_steps=1)
    got = sampler.images(np.zeros((4, 3), "float32"), start=Start(pixels, np.arange(4)))
    assert np.abs(got - normalize(pixels)).max() < 0.2
    assert not np.array_equal(got, normalize(pixels))


def test_impossible_starts():
    with pytest.raises(ValueError, match="41 sampling steps are more than the 40"):
        sampler_of(num_steps=41)
    with pytest.raises(ValueError, match=r"6 sampling steps are more than the 5 below level 0\.1"):
        sampler_of(level=0.1, num_steps=6)
    sampler_of(level=0.1, num_steps=5)
    start = Start(np.zeros((1, *SHAPE), np.uint8), np.array([0]))
    for wrong, given in ((sampler_of(), start), (sampler_of(level=0.5), None)):
        with pytest.raises(ValueError, match="level"):
            wrong.images(np.eye(3, dtype="float32")[:1], start=given)


def test_images_are_drawn_without_replacement_until_they_are_used_up():
    labels = np.array([0, 1, 0, 1, 1, 2])
    wanted = np.array([0, 1, 0, 1, 0, 1, 0, 0, 2, 2])
    rows = draw_rows(labels, wanted, rng())
    np.testing.assert_array_equal(labels[rows], wanted)
    zeros = rows[wanted == 0]
    assert set(zeros[:2]) == set(zeros[2:4]) == {0, 2} and set(rows[wanted == 1]) == {1, 3, 4}
    assert len(draw_rows(labels, np.array([], int), rng())) == 0
    with pytest.raises(ValueError, match="class 3 has no image"):
        draw_rows(labels, np.array([3]), rng())
