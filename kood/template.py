"""Texts that are written by a template of their package: recipes, model cards, what a threshold means."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["filled"]


def filled(package: str, name: str, filters: Mapping[str, Callable] | None = None, /, **values: Any) -> str:
    """A template of a package with values in it, which are written as they are: not for HTML.

    Args:
        package: The package, in whose folder `templates` it lies.
        name: Its file there.
        filters: What the template calls so, beside Jinja's own.
        values: What it is given; a name that it asks for and is not among them is an error.
    """
    made = _templates(package)
    made.filters |= filters or {}
    return made.get_template(name).render(values)


@functools.cache
def _templates(package: str) -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(package), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
