"""What was meant by a value of another kind, or by a line that is no TOML, and how TOML spells it."""

import datetime
import json
import os
import re
import tomllib
from collections.abc import Iterator
from typing import Any

__all__ = ["control_characters", "instead", "line_hint", "nothing", "value_hint"]

#: Signs that an editor, a web page or a chat puts in place of others, and what TOML wants there.
LOOKALIKES = {
    **dict.fromkeys("“”„‟«»", '"'), **dict.fromkeys("‘’‚‛", "'"),
    **dict.fromkeys("\u00a0\u2007\u202f\u3000", "a blank"), **dict.fromkeys("–—−", "-"),
    **dict.fromkeys("，、", ","), "＝": "=", "：": ":", "\u200b": "nothing",
    "\ufeff": "nothing",
}  # fmt: skip

_BACKSLASH = (
    "in double quotes a backslash begins an escape; write a path in single quotes, 'C:\\data', or with forward "
    'slashes, "C:/data"'
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NONE = "TOML has no word for none: leave the key out"


def line_hint(text: str, reason: str) -> str:
    """What to do about a line that the TOML reader refuses, "" where nothing is known.

    Args:
        text: The file.
        reason: The reader's message, which names the line.
    """
    place = re.search(r"at line (\d+)", reason)
    lines = text.split("\n")
    line = lines[int(place[1]) - 1] if place and int(place[1]) <= len(lines) else lines[-1]
    return value_hint(line)


def value_hint(line: str) -> str:
    """What to do about a line, or a value, that is no TOML; "" where nothing is known."""
    strange = [sign for sign in dict.fromkeys(line) if sign in LOOKALIKES]
    if strange:
        named = ", ".join(f"{sign!r} (U+{ord(sign):04X}) is to be {LOOKALIKES[sign]}" for sign in strange)
        return f"it holds signs that look like others: {named}"
    if "\\" in line and '"' in line:
        return _BACKSLASH
    key, equals, value = (part.strip() for part in line.partition("#")[0].partition("="))
    if equals and not value:
        return f"{key} has no value; give it one, or leave the key out"
    return _spelled(value or line.strip(), bare=bool(equals))


def _spelled(value: str, *, bare: bool) -> str:
    """What to write in place of a value in another language's spelling."""
    word = re.search(r"(?<![\w\"'])(True|False|None|null|nil|TRUE|FALSE)(?![\w\"'])", value)
    if word:
        return _NONE if word[1][0] in "Nn" else f"TOML writes {word[1].lower()}"
    if re.fullmatch(r"\.\d+|\d+\.|\d+,\d+", value):
        return f"TOML writes {float(value.replace(',', '.'))}"
    if re.fullmatch(r"""(["']).*\1\s*,\s*(["']).*\2""", value):
        return "a list stands in brackets"
    return "words stand in quotes" if bare and re.match(r"[A-Za-z_/.~$]", value) else ""


def control_characters(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, string) for every string with a control character, as "C:\\new" in double quotes has one."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from control_characters(one, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from control_characters(one, f"{key}.{number}")
    elif isinstance(value, str) and _CONTROL.search(value) and not os.path.lexists(value):  # Some names have one.
        yield key, f"holds a control character (found {value!r}): {_BACKSLASH}"


def instead(found: Any, wanted: str) -> str:
    """How a value of the wrong kind is spelled where another kind is wanted.

    Args:
        found: The value as it was read.
        wanted: Pydantic's name of the mistake: "list_type", "bool_type", "string_type", ...

    Returns:
        TOML, or "" where there is no telling what was meant.
    """
    bare = isinstance(found, str)
    match wanted:
        case "list_type" if not isinstance(found, dict | list):
            words = re.split(r"\s*,\s*", found.strip().strip("[]()").strip()) if bare else [found]
            return f"[{', '.join(_toml(word) for word in words if word != '')}]"
        case "bool_type" | "bool_parsing" if bare and found.lower() in ("true", "yes", "on", "false", "no", "off"):
            return "true" if found.lower() in ("true", "yes", "on") else "false"
        case "int_type" | "float_type" | "int_from_float" if bare or isinstance(found, float):
            return _number(str(found).strip("\"'"), whole=wanted != "float_type")
        case "string_type" if isinstance(found, bool | int | float | datetime.date | datetime.time):
            return json.dumps(str(found).lower() if isinstance(found, bool) else str(found))
        case "dict_type" | "model_type" if bare and found.startswith("{"):
            return re.sub(r"([=\[,]\s*)([A-Za-z_][\w./-]*)(?=\s*[,}\]])", lambda m: m[1] + _toml(m[2]), found)
    return ""


def nothing(found: Any) -> bool:
    """Whether a value was to say that there is none."""
    return isinstance(found, str) and found in ("", "None", "none", "null", "nil")


def _toml(word: Any) -> str:
    """A value of a list: what TOML reads as it stands, or else a string."""
    if not isinstance(word, str):
        return json.dumps(word) if isinstance(word, bool | int | float) else json.dumps(str(word))
    word = word.strip().strip("\"'")
    try:
        if isinstance(tomllib.loads(f"value = {word}")["value"], bool | int | float):
            return word
    except tomllib.TOMLDecodeError:
        pass
    return json.dumps(word, ensure_ascii=False)


def _number(text: str, *, whole: bool) -> str:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return ""
    if whole:
        return str(int(value)) if value == value // 1 and abs(value) < 2**53 else ""
    return repr(value)
