"""A TOML file, and the settings of the command line, to a checked recipe."""

import copy
import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kood.errors import UserError
from kood.recipe import settings, spelling
from kood.recipe.messages import explain
from kood.recipe.model import Recipe, shrunk
from kood.text import composed

__all__ = ["checked", "load", "shipped"]


def shipped() -> dict[str, Path]:
    """The recipes that come with kood, by name."""
    here = Path(__file__).parents[1]
    folder = here / "shipped" if (here / "shipped").is_dir() else here.parent / "recipes"  # Installed; a checkout.
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _near(path: Path) -> str:
    """Which recipes have a name like a file's, as a question: those of its folder, of `recipes` and of kood."""
    files = {*Path("recipes").glob("*.toml"), *path.parent.glob("*.toml")} - {path}
    known = {**{name: name for name in shipped()}, **{one.stem: str(one) for one in files}}
    close = difflib.get_close_matches(path.stem, known, cutoff=0.75)
    return f"did you mean {' or '.join(known[name] for name in close)}? " if close else ""


def load(path: str | Path, overrides: tuple[str, ...] | list[str] = (), *, quick: bool = False) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: A TOML file, or the name of a recipe that comes with kood (`kood list recipes`).
        overrides: `KEY=VALUE` settings, dotted keys, values in TOML (bare words are strings).
        quick: Shrink it to a smoke run of a few minutes on a CPU.

    Returns:
        The complete recipe.

    Raises:
        UserError: the file cannot be read, is not TOML, or is not a valid recipe.
    """
    if isinstance(overrides, str):
        raise UserError(f"overrides: found the text {overrides!r}; give a list, such as ['train.epochs=10']")
    if not isinstance(path, str | Path):
        raise UserError(
            f"a recipe is a TOML file or the name of one that comes with kood; found a {type(path).__name__}"
        )
    path = Path(path)
    if not path.suffix and not path.exists():
        path = shipped().get(str(path), path)
    try:
        text = path.read_bytes().decode("utf-8-sig")  # Windows' editors put a byte order mark before UTF-8.
    except (OSError, ValueError) as error:
        reason = (
            "is not UTF-8 text; save it as UTF-8 in your editor"
            if isinstance(error, UnicodeDecodeError)
            else f"{getattr(error, 'strerror', error)}; {_near(path)}give a TOML file, or one of `kood list recipes`"
        )
        raise UserError(f"{path}: cannot read the recipe: {reason}") from error
    try:
        given = tomllib.loads(composed(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        told = "; ".join(filter(None, (str(error) or "nested too deeply", spelling.line_hint(text, str(error)))))
        raise UserError(f"{path}: not valid TOML: {told}") from error
    file, tables = copy.deepcopy(given), dict[str, Any]()
    for override in map(composed, overrides):
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {override!r}: write it as KEY=VALUE, such as --set train.epochs=10")
        where = f"--set {key.strip()}"
        tables[key.strip()] = settings.parse(value.strip(), where=where)
        settings.put_all(given, key.strip(), tables[key.strip()], where=where)
    for override in map(composed, overrides):
        key, _, value = override.partition("=")
        settings.refuse_covered(key.strip(), value.strip(), given.get("matrix"))
    for key, trouble in spelling.control_characters(given):
        raise UserError(f"{path}: {key}: {trouble}")
    given.setdefault("name", path.stem)
    keys = [override.partition("=")[0].strip() for override in overrides]
    recipe = checked(given, str(path), keys, quick=quick)
    taken = {key: settings.reset(file, key, value, given) for key, value in tables.items()}
    recipe.comes_from(path, overrides, taken)
    return recipe


def checked(given: dict[str, Any], where: str, keys: Sequence[str] = (), *, quick: bool = False) -> Recipe:
    """A recipe of tables, settings and values.

    Args:
        given: What a TOML file would say.
        where: What begins every message.
        keys: Those that the command line set.
        quick: Shrink it to a smoke run.

    Raises:
        UserError: it is not a valid recipe.
    """
    try:
        recipe = Recipe.model_validate(given)
        if quick:
            given = {**given, "name": f"{recipe.name}-quick", "quick": True}
            recipe = Recipe.model_validate(shrunk(recipe, given))
        recipe._given.update(given)  # Of a smoke run whole: a cell is cut down when the matrix has said what it has.
        recipe.cells()
        if recipe.report.leaderboard and not recipe.matrix:
            raise UserError("report.leaderboard lays the rows of a matrix side by side, and there is none; add "
                            "[matrix], or remove it")  # fmt: skip
    except (ValidationError, UserError) as error:
        told = explain(error, Recipe, given, keys).splitlines()
        raise UserError("\n".join(f"{where}: {line}" for line in told)) from error
    return recipe
