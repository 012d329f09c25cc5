"""OOD scores: higher = more out-of-distribution, float32 (B,), for every one of them.

The score of an image follows from its own outputs alone, whatever else its batch holds and however often it is asked;
one from outside is held to it when it is first asked.

A score asks for what it needs by the names of its parameters: `logits` (B, K), `cosines` (B, K), `features` (B, D),
`perturbed` (B, K) and `shifted` (B, D), logits and features of images that were moved a little, `rotations` (B, 4),
-ln p of the right rotation of the image in each of four. A parameter with a default is not needed. A plain score is a
function. One that must first see ID data is a class that derives from `kood.scores.fitting.Fitted`: `fit` takes NumPy
arrays and computes in float64; `score` is Keras operations on float32, so that it works on NumPy arrays and on tensors,
in `tf.function`, under `jit` and inside an exported graph; `get_state` and `from_state` carry it through an `.npz` file
without pickle.

`fit` of a score that reworks a linear head asks for `kernel` (D, K) and `bias` (K,) without a default: it does not
apply to a head that has none. A class with `held_out = True` is fitted to validation images where there are any, and
otherwise to those of the training as the others are.

The options of a score are the parameters of its function that have a default, or those of its `__init__`; a recipe and
the command line name them after it (`kood.specs`), and `from_state` is given them where it takes them, as that of
`Fitted` does. `usual`, an attribute with literals of either, {option: values}, says what is usually tried for an
option, as OpenOOD's sweeps have it and somewhat beyond, since its images and networks are larger than some of kood's
users': `evaluate.tune` chooses among their combinations.
A score of `perturbed` logits has the options `temperature` and `epsilon`, one of `shifted` features `pixels` and
`epsilon`, which decide how images are moved.

A new score is a function or a class in any file of this room, with its name in the file's `__all__`. It is measured in
every run from then on, and may be chosen; one that is wanted by name alone stands in `ON_REQUEST` too. One whose code
changes what it computes gets `version = 2`, and so on (a function as an attribute): then it is measured again.

Example:
    ```python
    import numpy as np
    import kood

    rng = np.random.default_rng(0)
    known, new = rng.normal(size=(100, 8)), 3 + rng.normal(size=(5, 8))
    kood.scores.energy(np.array([[5.0, 0.0]], "float32"))  # (1,)
    nearest = kood.scores.KNN(k=10).fit(known)
    nearest.score(new.astype("float32"))  # (5,), higher = more out-of-distribution
    ```
"""

from typing import TYPE_CHECKING, Any

from kood import registry

#: Scores that are measured where a recipe names them only: those that compare each image with a whole bank once more,
#: some that take features for activations of a ReLU, some for classifiers that hardly err, and near twins of others.
#: A long list costs time, and the headline that few validation images choose from it is chance.
ON_REQUEST = frozenset(
    {"adascale", "angular_energy", "ash", "dice", "gradnorm", "klmatching", "nci", "nnguide", "odin",
     "odin_temperature", "openmax", "relation", "scale", "she", "tempscale", "weiper"}
)  # fmt: skip

_things = registry.things("scores")
globals().update(_things)
__all__ = list(_things)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
