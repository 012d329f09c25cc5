"""The one exception whose message is meant for the user, not for a developer."""

import contextlib
import re
from collections.abc import Iterator, Mapping

__all__ = ["UserError", "first_line", "in_words", "under"]


class UserError(ValueError):
    """Something the user can mend: a recipe, a file, a missing package.

    The message is one readable sentence or two: it names the file or the key, says what was found, and how to
    mend it. The command line prints it without a traceback.

    Args:
        message: What to print.
        exit_code: 2 where the input is wrong, 1 where a run failed on it.
    """

    def __init__(self, message: str, exit_code: int = 2):
        super().__init__(message)
        self.exit_code = exit_code


def under(key: str) -> contextlib.AbstractContextManager[None]:
    """Puts a recipe's key before a message that begins with the name of one of its settings.

    Args:
        key: Where the recipe has the table, such as "data.far.noise"; "path = ..." becomes "data.far.noise.path = ...".

    Raises:
        UserError: what was raised inside, with the same exit code.
    """
    return in_words({"^": f"{key}."})


@contextlib.contextmanager
def in_words(said: Mapping[str, str]) -> Iterator[None]:
    """Says messages in the words of a command, which calls things otherwise than recipes and the library do.

    Args:
        said: {regular expression: what stands in its place}, in their order.

    Raises:
        UserError: what was raised inside, with the same exit code.
    """
    try:
        yield
    except UserError as error:
        text = str(error)
        for pattern, words in said.items():
            text = re.sub(pattern, words, text)
        raise UserError(text, error.exit_code) from error


def first_line(error: BaseException) -> str:
    """The kind of an error of code that is not kood's, and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
