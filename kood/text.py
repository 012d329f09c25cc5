"""Text from outside, made safe to show."""

__all__ = ["clean"]


def clean(value: object) -> str:
    r"""Text on one line without control characters: each is written out, as in \x1b; line breaks become spaces.

    Names come from recipes and folders. An escape sequence in one must not reach a terminal, nor a lone
    surrogate a UTF-8 file.
    """
    text = " ".join(str(value).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
