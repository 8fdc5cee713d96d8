"""Where the JSON data of two runs differ, said in a sentence."""


def first_difference(saved, found, path: str = "", sides: tuple[str, str] = ("checkpoint", "new run")) -> str:
    """One line on the first leaf in which two JSON values differ; empty where they are equal."""
    if isinstance(saved, dict) and isinstance(found, dict):
        for key in sorted({*saved, *found}):
            here = f"{path}.{key}" if path else key
            if key not in saved or key not in found:
                return f"{here} is only in the {sides[0] if key in saved else sides[1]}"
            if difference := first_difference(saved[key], found[key], here, sides):
                return difference
        return ""
    return "" if saved == found else f"{path}: {sides[0]} {saved!r}, now {found!r}"
