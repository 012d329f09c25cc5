"""kood touches no private name of Keras, which the next Keras may not have."""

import ast
import functools
import inspect
import re
from pathlib import Path

import keras
import pytest

ROOM = Path(__file__).parents[1] / "kood"
FILES = sorted(ROOM.rglob("*.py"))
CURRENT = keras.backend.backend()
PRIVATE = re.compile(r"_[a-zA-Z]\w*")
#: What begins with an underscore and is none the less documented for all: Python's own.
DOCUMENTED = {"os._exit"}


def own_names(trees):
    """Every private name that kood gives to something: functions, classes, attributes, fields, variables."""
    names = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


@functools.cache
def tree_of(file):
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def own_names_of_all():
    return own_names([tree_of(file) for file in FILES])


def touched(tree, own):
    """Private names of others: attributes of what is not `self`, names taken by `getattr`, and `keras.src`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            stored = isinstance(node.ctx, ast.Store)
            public = ast.unparse(node) in DOCUMENTED
            if ((stored and not of_self) or node.attr not in own) and node.attr not in STORED_ON_OWN and not public:
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if any("keras.src" in name for name in names):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "keras.src" in node.value:
            found.append(f"{node.lineno}: {node.value!r}")
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
            named = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else ""
            if isinstance(named, str) and PRIVATE.fullmatch(named) and named not in own:
                found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


#: Attributes that kood sets on objects of its own from outside.
STORED_ON_OWN = {"_task"}


def test_no_private_name_of_keras_is_touched():
    own = own_names_of_all()
    assert len(FILES) > 200
    assert not {str(file.relative_to(ROOM)): found for file in FILES if (found := touched(tree_of(file), own))}


def test_what_touches_one_is_found():
    own = own_names([ast.parse("class A:\n def __init__(self):\n  self._mine = 1")])
    for line in (
        "model._flatten_layers()", "self._clear_losses()", "layer._moments = f", "a.b._mine = 1",
        "import keras.src.layers", "x = 'keras.src.y'",
        "from keras.src import ops", "getattr(layer, '_moments')", "setattr(layer, '_moments', f)",
    ):  # fmt: skip
        assert len(touched(ast.parse(line), own)) == 1, line
    for line in ("self._mine = 2", "a._mine", "self.__class__", "getattr(a, '_mine')", "keras.layers"):
        assert not touched(ast.parse(line), own), line


def kinds():
    """kood's own kinds of Keras's classes."""
    import importlib

    from kood.data.augment import keras_cv_layers  # noqa: F401  The one file that another library is needed for.

    found = {}
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        if "keras" not in text or "class " not in text:
            continue
        name = ".".join(("kood", *file.relative_to(ROOM).with_suffix("").parts)).removesuffix(".__init__")
        backend = file.stem.split("_")[0]
        if file.parent.name in ("backends", "kernels") and backend in {"tensorflow", "jax", "torch"} - {CURRENT}:
            continue
        for thing in vars(importlib.import_module(name)).values():
            if inspect.isclass(thing) and thing.__module__ == name:
                found[f"{name}.{thing.__name__}"] = thing
    return found


@pytest.mark.backend
def test_no_class_redefines_a_private_name_of_its_keras_class():
    seen = 0
    for name, kind in kinds().items():
        theirs = [base for base in kind.__mro__ if base.__module__.split(".")[0] == "keras"]
        seen += bool(theirs)
        private = {given for base in theirs for given in vars(base) if PRIVATE.fullmatch(given)}
        own = {given for given in vars(kind) if PRIVATE.fullmatch(given)}
        # What Keras sets in `__init__` is private to it as well.
        for base in theirs:
            private |= set(re.findall(r"self\.(_[a-zA-Z]\w*)\s*=[^=]", inspect.getsource(base)))
        set_here = set(re.findall(r"self\.(_[a-zA-Z]\w*)", inspect.getsource(kind))) if theirs else set()
        assert not (own | set_here) & private, (name, sorted((own | set_here) & private))
    assert seen >= 20
