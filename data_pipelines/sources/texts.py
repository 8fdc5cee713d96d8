"""The instruction of an episode, step by step: a text, or its bytes as numbers, which may change on the way."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from data_pipelines.episode import BadEpisode

NO_INSTRUCTION = ("", "not provided")  # DROID's words for none


def texts_of(values: Sequence | np.ndarray, text_of: Callable[[Any], str], where: str
             ) -> tuple[tuple[int, str | BadEpisode], ...]:
    """What `Episode.instructions` holds, from a value for each step; only those that differ from the one before are
    looked at.

    What is empty at first and said later is said from the beginning: the whole recording is an answer to it. Raises
    BadEpisode where `text_of` raises ValueError for the first step; for a later one, the error stands for the text.
    """
    found: list[tuple[int, str | BadEpisode]] = []
    for step in _changes(values):
        try:
            found.append((step, text_of(values[step])))
        except ValueError as error:
            found.append((step, BadEpisode(f"{where}{f' step {step}' if step else ''}: {error}")))
    if len(found) > 1 and found[0][1] == "":
        found[:2] = [(0, found[1][1])]
    if isinstance(found[0][1], BadEpisode):
        raise found[0][1]
    return tuple(found)


def _changes(values: Sequence | np.ndarray) -> list[int]:
    """The first step, and those whose value is another than the one before."""
    if isinstance(values, np.ndarray) and values.ndim > 1:
        apart = (values[1:] != values[:-1]).reshape(len(values) - 1, -1).any(1)
        return [0, *(1 + np.flatnonzero(apart)).tolist()]
    return [0, *(i for i in range(1, len(values)) if values[i] != values[i - 1])]


def text(value, name: str = "the instruction") -> str:
    """A text that is stored as text, as bytes in UTF-8, or as their numbers, padded with zeros (language_table's).
    Raises ValueError, which calls it `name`."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
        value = bytes(value).rstrip(b"\0")
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} is not UTF-8: {error}") from error
    if isinstance(value, str):
        return value
    raise ValueError(f"{name} is no text: {str(value)[:60]}")


def any_said(texts: Iterable) -> bool:
    """Whether one of the texts is an instruction; True for one that cannot be read, so that it is reported."""
    return any(text not in NO_INSTRUCTION for text in texts)
