"""What a JSON value should look like: rules that say, in a sentence, what in a file is of another kind.

A rule is a function of a value that returns what was expected and found, or nothing where the value fits.
"""

import reprlib
from collections.abc import Callable, Mapping

Rule = Callable[[object], str]


def check(value, rule: Rule, where: str):
    """Returns the value. Raises ValueError, which names `where`, if it breaks the rule."""
    if problem := rule(value):
        raise ValueError(f"{where}{problem}")
    return value


def text(value) -> str:
    """A text."""
    return _unless(isinstance(value, str), value, "a text")


def anything(value) -> str:
    """Whatever it is."""
    return ""


def number(low: float, high: float = 2.0**31) -> Rule:
    """A number from `low` to `high`, and no NaN."""
    def rule(value) -> str:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
        return _unless(fits, value, f"a number of {low:g} to {high:g}")

    return rule


def whole(low: int = 0, high: int = 2**31) -> Rule:
    """A whole number from `low` to `high`."""
    def rule(value) -> str:
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return _unless(fits, value, f"a whole number of {low} to {high}")

    return rule


def optional(inner: Rule) -> Rule:
    """What fits the rule, or null."""
    def rule(value) -> str:
        return "" if value is None else inner(value)

    return rule


def list_of(inner: Rule) -> Rule:
    """A list of values that fit the rule."""
    def rule(value) -> str:
        if not isinstance(value, list):
            return _unless(False, value, "a list")
        return next((f"[{i}]{problem}" for i, each in enumerate(value) if (problem := inner(each))), "")

    return rule


def map_of(inner: Rule) -> Rule:
    """A map whose values fit the rule."""
    def rule(value) -> str:
        if not isinstance(value, dict):
            return _unless(False, value, "a map")
        return next((f": {key}{problem}" for key, each in value.items() if (problem := inner(each))), "")

    return rule


def fields(known: Mapping[str, Rule], required: tuple[str, ...] = ()) -> Rule:
    """A map whose values under known keys fit their rules; others may be anything."""
    def rule(value) -> str:
        if not isinstance(value, dict):
            return _unless(False, value, "a map")
        if missing := [key for key in required if key not in value]:
            return f" has no {missing[0]!r}"
        return next((f": {key}{problem}" for key, inner in known.items()
                     if key in value and (problem := inner(value[key]))), "")

    return rule


def _unless(fits: bool, value, expected: str) -> str:
    return "" if fits else f" = {reprlib.repr(value)}: expected {expected}"
