"""Where the JSON data of two runs differ, said in sentences."""

from collections.abc import Iterator


def differences(a, b, sides: tuple[str, str] = ("the checkpoint", "this run"), path: str = ""
                ) -> Iterator[str]:
    """Yields a sentence for each difference between two JSON values, in the order of the keys."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        if a != b:
            yield f"{path} is {a} in {sides[0]}, {b} in {sides[1]}"
        return
    for key in sorted(a.keys() | b.keys()):
        name = f"{path}.{key}" if path else key
        if key in a and key in b:
            yield from differences(a[key], b[key], sides, name)
        else:
            yield f"{name} is only in {sides[0] if key in a else sides[1]}"


def first_difference(a, b, sides: tuple[str, str] = ("the checkpoint", "this run"), path: str = "") -> str | None:
    """The first of `differences`; None where there is none."""
    return next(differences(a, b, sides, path), None)
