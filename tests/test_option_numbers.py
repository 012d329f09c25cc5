"""Numbers of heads, scores, losses and samplers that are none: refused by name, whatever the room."""

import numpy as np
import pytest

from kood import registry

#: Options that are a number though their default is none.
NUMBERS = ("dim", "clip", "margin")
ROWS = {name: np.eye(3, 4, dtype="float32") for name in ("logits", "cosines", "perturbed")}
SAMPLED = {
    "denoise": lambda x, t: 0 * x, "alpha_bar": np.array([0.9, 0.1]), "noise": np.zeros((1, 2, 2, 1)), "num_steps": 2,
}  # fmt: skip
GIVEN = {"num_classes": 4, "k": 2, **ROWS, **SAMPLED}


def numbers():
    for room in ("heads", "scores", "losses", "samplers"):
        for entry in registry.room(room).values():
            for option, default in entry.defaults.items():
                is_number = isinstance(default, int | float) and not isinstance(default, bool) or option in NUMBERS
                if is_number and option != "seed":
                    yield room, entry.name, option


@pytest.mark.keras
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("room", "name", "option"), numbers())
def test_numbers_that_are_none_are_refused_by_name(room, name, option, wrong):
    given = {one: GIVEN[one] for one in registry.find(room, name).required if one in GIVEN}
    with pytest.raises(ValueError, match=f"{option}.*{wrong}"):
        registry.obtain(room, name)(**given | {option: wrong})


def test_every_room_has_some():
    found = {(room, option) for room, _, option in numbers()}
    assert {("heads", "margin"), ("scores", "msp_weight"), ("losses", "margin"), ("samplers", "clip")} <= found
