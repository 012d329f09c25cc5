"""Data sources, one file each: a file's `__all__` is what a recipe may name.

A source is `NAME(image_shape, *, seed, <options>) -> {"train": ImageSet, "test": ImageSet}`, with "validation" beside
them or in place of "test" where it has one, or `{"all": ImageSet}` where there is no official split. Its options are
among `path`, `root`, `name`, `columns`, `group`, `classes`, `count`, `split` and `max_bad_images`. Called with a
`split`, a source with an official split may return that one alone; one without returns "all". What a user can mend it
reports as a `UserError` that begins with the option's name. Importing a source file imports nothing heavy.

Sources that differ in a name and a size are rows: `NAME = row(make, summary, **fixed)` of one function of the file.

A file whose sources read files has a function `reads(source) -> (folder, files)` as well: given a recipe's source,
every file that it will read, and the folder that their names are told relative to. A change of one of them makes a run
again.
"""

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["row"]


def row(make: Callable[..., Any], summary: str, **fixed: Any) -> Callable[..., Any]:
    """A source that is another one with some of its arguments given.

    Args:
        make: A source, or a function like one, of the same file.
        summary: What it gives, in one line; a literal, because the registry reads it without an import.
        **fixed: The arguments that are given, by keyword.

    Returns:
        A source with the other arguments.
    """

    def source(image_shape, **options):
        return make(image_shape, **fixed, **options)

    signature = inspect.signature(make)
    left = [parameter for name, parameter in signature.parameters.items() if name not in fixed]
    source.__doc__, source.__signature__ = summary, signature.replace(parameters=left)  # type: ignore[attr-defined]
    return source
