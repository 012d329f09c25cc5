"""Text from outside, made safe to show and to compare."""

import re
import unicodedata
from collections.abc import Iterable

__all__ = ["clean", "composed", "masked", "printable", "shown", "some_of"]

#: User and password of an address: all that stands before the last "@" of a word, after "scheme://".
_CREDENTIALS = re.compile(r"(?P<scheme>\b[A-Za-z][\w+.-]*://)\S*@")


def clean(value: object) -> str:
    r"""Text on one line without control characters: each is written out, as in \x1b; line breaks become spaces.

    Names come from recipes and folders. An escape sequence in one must not reach a terminal, nor a lone
    surrogate a UTF-8 file.
    """
    return printable(" ".join(str(value).split()))


def printable(text: str) -> str:
    """Text without control characters, as of `clean`, in the lines and with the spaces that it has."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def composed(name: str) -> str:
    """A name in Unicode's normalization form C, in which names are kept and compared.

    One name has several spellings: macOS writes é as two characters, Linux and recipes as one.
    """
    return unicodedata.normalize("NFC", name)


def masked(text: str) -> str:
    """Text in which no address has its user and password: "http://***@host" for "http://user:secret@host"."""
    return _CREDENTIALS.sub(r"\g<scheme>***@", text)


def shown(value: object, most: int = 80) -> str:
    """A value of a recipe in a message, as TOML has it: true, not True; the beginning of a long one."""
    text = repr(value) if isinstance(value, str) else re.sub(r"\b(True|False)\b", lambda m: m[1].lower(), repr(value))
    return text if len(text) <= most else text[: most - 3] + "..."


def some_of(names: Iterable[str], most: int = 5, least: int = 0) -> str:
    """At most so many names in a row, of at least so many: "a, b and 3 more"."""
    names = list(names)
    more = max(least, len(names)) - len(names[:most])
    return ", ".join(names[:most]) + (f" and {more} more" if more else "")
