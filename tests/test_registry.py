"""What the registry reads from the source is what Python finds there."""

import importlib
import inspect
import subprocess
import sys

import pytest

from kood import registry
from kood.errors import UserError


@pytest.mark.keras
@pytest.mark.parametrize("room", registry.ROOMS)
def test_entries_agree_with_the_imported_objects(room):
    entries = registry.room(room)
    assert entries
    for name, entry in entries.items():
        found = getattr(importlib.import_module(entry.module), entry.attribute)
        assert name.replace("_" if room == registry.TABLES else "", "") == entry.attribute.lower()
        assert entry.summary, f"{name} has no docstring"
        asked = inspect.signature(
            found.__init__ if inspect.isclass(found) and room != registry.TABLES else found
        ).parameters
        parameters = {name: one for name, one in asked.items() if name != "self"}
        expected = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if room == registry.TABLES:
            assert list(entry.parameters) == list(found.model_fields)
            continue
        assert list(entry.parameters) == expected
        assert entry.learns == (getattr(found, "learns", True) is not False)
        assert set(entry.required) == {n for n in expected if parameters[n].default is inspect.Parameter.empty}
        if room == "scores" and inspect.isclass(found):
            asked = {n: p for n, p in inspect.signature(found.fit).parameters.items() if n != "self"}
            assert set(entry.fitted_on) == {n for n, p in asked.items() if p.default is inspect.Parameter.empty}


def test_names_are_unique_and_found_in_any_case():
    assert registry.find("heads", "ArcFace", "head.name").attribute == "ArcFace"
    with pytest.raises(UserError, match="head.name.*arcfase.*did you mean 'arcface'"):
        registry.find("heads", "arcfase", "head.name")


def test_command_line_loads_nothing_heavy():
    code = (
        "import sys, kood.cli; "
        "print([m for m in ('keras', 'tensorflow', 'matplotlib', 'numpy', 'pydantic') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_checking_a_recipe_does_not_import_keras(tiny):
    code = (
        "import sys; from kood.recipe import load; load(sys.argv[1]).cells(); "
        "print([m for m in ('keras', 'tensorflow', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tiny)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
