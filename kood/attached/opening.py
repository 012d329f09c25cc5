"""Keras files of strangers."""

import contextlib
import inspect
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import h5py
import keras

from kood import registry
from kood.attached.watching import layers_of
from kood.data.paths import KERAS_FILE, need_file
from kood.errors import UserError
from kood.process import alone
from kood.text import clean, some_of

__all__ = ["bring", "bring_layers_of", "handed_over", "kept", "opened"]


#: Layers that Keras made of TensorFlow's operations before Keras 3, which knows none of them.
_OPERATIONS = ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer")


def bring(modules: Iterable[str], where: str = "import") -> None:
    """Imports modules of the user's, so that Keras knows the layers, further classes and functions in them, whether
    these are registered or not; what Keras itself has a word for, such as "relu", stays Keras's own.

    Args:
        modules: Their names, which `kood.registry.imported` then tells too.
        where: What begins the message.

    Raises:
        UserError: one cannot be imported, or they are no names.
    """
    names: list[Any] = list(modules) if isinstance(modules, Iterable) and not isinstance(modules, str) else [None]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f'{where} = {modules!r}: write a list of names of modules, such as ["my_layers"]')
    for module in names:
        for name, one in vars(registry.bring(module, where)).items():
            # What a script that trained the model defines goes by its bare name.
            if not (inspect.isclass(one) or inspect.isfunction(one)) or one.__module__ != module:
                continue
            if (inspect.isclass(one) and issubclass(one, keras.Layer)) or not _is_of_keras(name):
                keras.saving.get_custom_objects().setdefault(name, one)


def _is_of_keras(name: str) -> bool:
    """Whether Keras takes a word, where it takes one at all, for something of its own."""
    if hasattr(keras.layers, name) or hasattr(keras.models, name) or name == "Functional":
        return True
    for room in (keras.activations, keras.constraints, keras.initializers, keras.losses, keras.metrics,
                 keras.regularizers):  # fmt: skip
        with contextlib.suppress(Exception):  # Each says in its own way that it has no such thing.
            room.get(name)
            return True
    return False


def bring_layers_of(model: keras.Model) -> None:
    """Lets `kood.registry.imported` tell the modules of a model's own layers, for a process that loads its file."""
    modules = {type(layer).__module__ for _, layer in layers_of(model)}
    bring(sorted(name for name in modules if name.partition(".")[0] not in ("keras", "kood", "__main__")))


def handed_over(work: Callable[..., object]) -> NoReturn:
    """Does the work of a process that `kood.process.run_on_tensorflow` began, and ends it.

    Args:
        work: Is given the arguments, as words. A `UserError` of it is what the process ends with.
    """

    def done():
        modules, *arguments = sys.argv[1:]
        try:
            bring(filter(None, modules.split(",")))
            registry.obtain("heads", "softmax")  # Importing the room registers every head with Keras.
            work(*arguments)
        except UserError as problem:
            sys.exit(str(problem))

    alone(done)


def opened(
    file: Path, custom_objects: Mapping[str, Any] | None = None, key: str = "model", shown: Path | None = None
) -> keras.Model:
    """A `.keras` file's model; nothing that a stranger wrote into it is run.

    Args:
        custom_objects: Layers and functions of the user's own, by name.
        key: What begins the message.
        shown: What the message calls the file, where it is a part of another.

    Raises:
        UserError: there is no such file, it is none of Keras's, or it holds a layer that is not known here.
    """
    need_file(file, key, KERAS_FILE)
    said, is_hdf5 = f"{key}: {clean(shown or file)}", _is_hdf5(file)
    if not (is_hdf5 or zipfile.is_zipfile(file)):
        raise UserError(f"{said} is no .keras file, or it is damaged; give one that model.save(...) wrote")
    if file.suffix not in (suffixes := (".h5", ".hdf5") if is_hdf5 else (".keras",)):
        kind = "an HDF5" if is_hdf5 else "a .keras"
        raise UserError(f"{said} is {kind} file by another name, and Keras goes by names; rename it to "
                        f"{clean(file.stem)}{suffixes[0]}")  # fmt: skip
    try:
        # A registered class is looked up by its full name, which people do not write.
        given = dict(custom_objects or {})
        given |= {keras.saving.get_registered_name(one): one for one in given.values()}
        return keras.saving.load_model(file, given, compile=False, safe_mode=True)
    except Exception as error:  # Whatever a damaged or a strange file makes Keras say.
        raise UserError(f"{said} cannot be loaded: {_otherwise(file, is_hdf5)}{_why(error, is_hdf5)}") from error


def kept(model: keras.Model, file: Path, shown: Path) -> None:
    """Writes a `.keras` file that `opened` opens again, but for the layers and functions of the user's own.

    Args:
        shown: What the message calls it.

    Raises:
        UserError: the model cannot be saved, or holds Python code, which is not run.
    """
    try:
        model.save(file)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"{clean(shown)}: the classifier cannot be saved: {clean(error)}") from error
    with zipfile.ZipFile(file) as written:
        has_code = b'"__lambda__"' in written.read("config.json")
    if has_code:
        named = [clean(layer.name) for _, layer in layers_of(model) if isinstance(layer, keras.layers.Lambda)]
        which = f"the Lambda layer {some_of(map(repr, named))}" if named else "a lambda"
        raise UserError(
            f"{clean(shown)}: the classifier holds Python code ({which}), which is not run when it is loaded again; "
            "build it with a layer class instead, or with operations of keras.ops"
        )


def _is_hdf5(file: Path) -> bool:
    with file.open("rb") as opened_file:
        return opened_file.read(8) == b"\x89HDF\r\n\x1a\n"


def _otherwise(file: Path, is_hdf5: bool) -> str:
    """What to say first of a file that a newer Keras saved, or that one before Keras 3 did; "" of others."""
    try:
        if is_hdf5:
            with h5py.File(file) as archive:
                theirs = archive.attrs["keras_version"]
        else:
            with zipfile.ZipFile(file) as archive:
                theirs = json.loads(archive.read("metadata.json"))["keras_version"]
        version = re.findall(r"\d+", str(theirs))
        newer, here = ([int(n) for n in numbers[:2]] for numbers in (version, keras.__version__.split(".")))
    except Exception:  # Keras has said more.
        return ""
    saved = f"Keras {'.'.join(version)} saved it, and here is {keras.__version__}"
    return f"{saved}; upgrade keras: " if newer > here else f"{saved}: " if newer < [3] else ""


def _why(error: Exception, is_hdf5: bool) -> str:
    # Keras tells what it was at, with the whole of a layer's settings, before it tells what is wrong.
    text = " ".join(str(error).split()).rpartition("Exception encountered: ")[2]
    unknown = re.search(r"(?:Could not locate (?:class|function)|Unknown layer:) '([^']+)'", text) or re.search(
        r"Could not interpret \w+ identifier: .*'registered_name': '([^']+)'", text
    )
    if unknown and unknown.group(1) not in _OPERATIONS:
        return (
            f"it has the custom layer or function {unknown.group(1)!r}; register it "
            "(@keras.saving.register_keras_serializable) and import its module first, or pass custom_objects"
        )
    if "safe_mode" in text or ("lambda" in text.lower() and not unknown):
        return "it holds Python code (a Lambda layer), which is not run; save the model with a layer class instead"
    if "No model config found" in text:
        return 'it holds weights and no network; save the whole model, model.save("model.keras")'
    said = text[:300] or type(error).__name__
    if is_hdf5 and not isinstance(error, OSError):  # Which is of a damaged file.
        return f"{said}; build the network here, load the weights with model.load_weights(...), and save it as .keras"
    return f"{said}; is it a Keras model, saved by model.save(...)?"
