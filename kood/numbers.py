"""What a number may be that a head, a score or a loss is given, and what is said of one that may not."""

import math

__all__ = ["above_zero", "at_least_zero", "between", "finite", "fraction", "whole"]


def whole(name, value, least=1):
    """A whole number."""
    if isinstance(value, bool) or not math.isfinite(value) or int(value) != value or value < least:
        raise ValueError(f"{name} must be a whole number, at least {least}; it is {value!r}.")
    return int(value)


def finite(name, value):
    """Any number but NaN and the infinite ones."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number; it is {value!r}.")
    return float(value)


def above_zero(name, value):
    """A finite number above 0."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0 and finite; it is {value!r}.")
    return float(value)


def at_least_zero(name, value):
    """A finite number from 0."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite; it is {value!r}.")
    return float(value)


def fraction(name, value):
    """A fraction from 0 to below 1; one in percent is told apart by its message."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be a fraction, from 0 to below 1; it is {value!r}.")
    return float(value)


def between(name, value):
    """A share that is neither nothing nor all; one in percent is told apart by its message."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1; it is {value!r}.")
    return value
