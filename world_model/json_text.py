"""JSON as text: strict, so that two readers of one text cannot take it for different values."""

import collections
import json

DEPTH = 64  # lists and maps inside each other: whoever walks what was read may do it by recursion


def value(text: str | bytes, where: str):
    """The value that a text stands for. Raises ValueError, which names `where`, if it stands for none, has a key twice,
    or is deeper than DEPTH."""
    text = decoded(text, where)
    try:
        found = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not _is_shallow(found):
        raise ValueError(f"{where} has lists and maps inside each other more than {DEPTH} deep")
    return found


def decoded(text: str | bytes, where: str) -> str:
    """The text, from UTF-8. Raises ValueError, which names `where`."""
    try:
        return text.decode("utf-8-sig") if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: {error}") from error


def _is_shallow(value) -> bool:
    level = [value]
    for _ in range(DEPTH):
        level = [inner for each in level if isinstance(each, (dict, list))
                 for inner in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return True
    return False


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict:
    """Makes a map; json.loads alone would keep the last of two equal keys."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = collections.Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice:.99} is there twice")
    return found
