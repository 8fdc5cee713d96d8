"""The one reader of JSON: text becomes a value that is as a rule says, or an error says in a sentence where it is not.

A rule is a function of a value that returns what was expected and found, or an empty text where the value fits.
"""

import inspect
import json
import os
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path

from world_model import json_text

Rule = Callable[[object], str]

_LARGEST = sys.float_info.max


def read(path: str | os.PathLike, rule: Rule):
    """Reads a file of this machine. Raises OSError where it cannot be read, and as `parse`."""
    return parse(Path(path).read_bytes(), rule, str(path))


def parse(text: str | bytes, rule: Rule, where: str):
    """The value that a JSON text stands for. Raises ValueError, which names `where`, if it stands for none or for one
    that breaks the rule."""
    return check(json_text.value(text, where), rule, where)


def lines(text: str | bytes, rule: Rule, where: str) -> list:
    """The values of a text with one on every line that is not empty; raises as `parse`, naming the line."""
    numbered = enumerate(json_text.decoded(text, where).split("\n"), 1)  # other ends of a line may stand inside a text
    return [parse(line, rule, f"{where} line {number}") for number, line in numbered if line.strip()]


def check(value, rule: Rule, where: str):
    """Returns the value. Raises ValueError, which names `where`, if it breaks the rule."""
    if problem := rule(value):
        raise ValueError(f"{where}{problem}")
    return value


def plain(value):
    """The value as it comes back from a JSON file: tuples are lists, keys are texts."""
    return json_text.value(json.dumps(value), "the value")


def anything(value) -> str:
    """Any value."""
    return ""


def text(value) -> str:
    """A text."""
    return _unless(isinstance(value, str), value, "a text")


def true_or_false(value) -> str:
    """True or false."""
    return _unless(isinstance(value, bool), value, "true or false")


def number(low: float = -_LARGEST, high: float = _LARGEST) -> Rule:
    """A number from `low` to `high`, and no NaN."""
    words = "a finite number" if low == -_LARGEST else f"a number of {low:g} to {high:g}"

    def rule(value) -> str:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
        return _unless(fits, value, words)

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


def one_of(*values) -> Rule:
    """One of these values."""
    def rule(value) -> str:
        return _unless(isinstance(value, str | int) and value in values, value, f"one of {', '.join(map(str, values))}")

    return rule


def either(one: Rule, other: Rule) -> Rule:
    """What fits one of two rules."""
    def rule(value) -> str:
        problems = [problem for inner in (one, other) if (problem := inner(value))]
        return " or ".join([problems[0], problems[1].rpartition("expected ")[2]]) if len(problems) == 2 else ""

    return rule


def list_of(inner: Rule) -> Rule:
    """A list of values that fit the rule."""
    def rule(value) -> str:
        if not isinstance(value, list):
            return _unless(False, value, "a list")
        return next((f"[{i}]{problem}" for i, each in enumerate(value) if (problem := inner(each))), "")

    return rule


def row(*inner: Rule) -> Rule:
    """A list of as many values as there are rules, each of which fits its own."""
    def rule(value) -> str:
        if not isinstance(value, list) or len(value) != len(inner):
            return _unless(False, value, f"a list of {len(inner)}")
        return next((f"[{i}]{problem}" for i, each in enumerate(value) if (problem := inner[i](each))), "")

    return rule


def map_of(inner: Rule) -> Rule:
    """A map whose values fit the rule."""
    def rule(value) -> str:
        if not isinstance(value, dict):
            return _unless(False, value, "a map")
        return next((f": {key:.99}{problem}" for key, each in value.items() if (problem := inner(each))), "")

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


MAP = map_of(anything)


def like(example) -> Rule:
    """What is of the same kind as the example, as far as it has the example's keys; null is an example of anything."""
    if isinstance(example, Mapping):
        return fields({key: like(each) for key, each in example.items()})
    kinds = {bool: true_or_false, int: number(), float: number(), str: text, tuple: list_of(anything),
             list: list_of(anything)}
    return kinds.get(type(example), anything)


def arguments_of(function: Callable) -> Rule:
    """A map that may be given to a function or class as its arguments: none missing, none unknown, plain kinds as they
    are annotated."""
    found = inspect.signature(function, eval_str=True).parameters
    known = {name: _annotated(each.annotation) for name, each in found.items()}
    needed = tuple(name for name, each in found.items() if each.default is each.empty)

    def rule(value) -> str:
        if isinstance(value, dict) and (unknown := sorted(value.keys() - known.keys())):
            return f": {unknown[0]:.99} is unknown; known are {', '.join(known)}"
        return fields(known, needed)(value)

    return rule


def make(function: Callable, value, where: str, **made):
    """What the function or class makes of a map of its arguments, those in `made` instead of the map's. Raises
    ValueError, which names `where`, if it may not be given that map, or refuses it."""
    check(value, arguments_of(function), where)
    try:
        return function(**value | made)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _annotated(kind) -> Rule:
    """What an annotation asks of a value that comes from JSON."""
    of_types: dict[object, Rule] = {bool: true_or_false, int: whole(-2**31), float: number(), str: text,
                                    tuple: list_of(anything)}
    inner = [each for each in typing.get_args(kind) if each is not type(None)]
    if isinstance(kind, types.UnionType):
        return optional(_annotated(inner[0])) if len(inner) == 1 else anything
    if inner[1:] == [...]:
        return list_of(_annotated(inner[0]))
    return of_types.get(typing.get_origin(kind) or kind, anything)


def _unless(fits: bool, value, expected: str) -> str:
    return "" if fits else f" = {reprlib.repr(value)}: expected {expected}"
