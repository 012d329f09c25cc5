"""The ground under transparency, from the recipe's key to the pixels of every source that may be seen through."""

import numpy as np
import pytest
from PIL import Image

from kood.data import load_id, load_ood
from kood.data.rules import Framing, ground_colour
from kood.recipe.data_sections import Data

GROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128), (9, 200, 77): (9, 200, 77)}


@pytest.fixture
def sources(tmp_path, npz_file, source):
    """Black pictures that one sees through but for a pixel, from every source of files."""
    clear, labels = np.zeros((8, 4, 4, 4), "uint8"), np.arange(8) % 2
    clear[:, 0, 0, 0], clear[:, 0, 0, 3] = 30 * np.arange(8), 255
    lines = []
    for place, (pixels, label) in enumerate(zip(clear, labels, strict=True)):
        (tmp_path / "files" / f"c{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "files" / f"c{label}" / f"{place}.png")
        lines.append(f"c{label}/{place}.png {label}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    return {
        "folder": {"path": str(tmp_path / "files")},
        "image_list": {"path": str(tmp_path / "list.txt"), "root": str(tmp_path / "files")},
        "npz": {"path": npz_file(images=clear, labels=labels)},
    }


def assert_over(found, colour, name):
    pixels = found.images.reshape(len(found), -1, 3)
    assert (pixels[:, 1:] == colour).all() and set(pixels[:, 0, 0]) <= {30 * one for one in range(8)}, name


@pytest.mark.keras
@pytest.mark.parametrize("ground", GROUNDS)
def test_every_source_of_files_lays_its_pictures_over_it(sources, source, id_data, ground):
    for name, options in sources.items():
        colour = GROUNDS[ground]
        found = load_ood(source(name, **options), (4, 4, 3), seed=0, key="data.near.x", framing=Framing(colour))
        assert_over(found, colour, name)
        data = id_data(name, image_shape=(4, 4, 3), **options)
        data.ground = ground
        splits = load_id(data)
        assert_over(splits.train, colour, name)
        assert_over(splits.test, colour, name)


def test_a_recipe_has_a_white_one_where_it_says_nothing():
    plain = {"image_shape": [4, 4, 3], "id": {"source": "digits"}}
    assert ground_colour(Data.model_validate(plain).ground) == (255, 255, 255)
    for ground, colour in GROUNDS.items():
        given = list(ground) if isinstance(ground, tuple) else ground
        assert ground_colour(Data.model_validate(plain | {"ground": given}).ground) == colour
