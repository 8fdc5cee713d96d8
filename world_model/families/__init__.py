"""The model families: which there are, and where the one object of each is declared. Everything else asks here.

A family that lives elsewhere is found by an entry point of the group `wamax.families` whose value is its Family object
(docs/add_a_family.md).
"""

import difflib
import functools
import importlib.metadata
import warnings

from world_model.families.base.family import Family, Model

GROUP = "wamax.families"
BUILT_IN = {
    "dreamzero": "world_model.families.dreamzero:FAMILY",
    "lingbot_va": "world_model.families.lingbot_va:FAMILY",
    "lingbot_va_mot": "world_model.families.lingbot_va:MIXTURE",
    "lingbot_vla": "world_model.families.lingbot_vla:FAMILY",
}


class FamilyError(ValueError):
    """A family is not installed or cannot be imported; the message says which there are, or what went wrong."""


def names() -> tuple[str, ...]:
    """Every family's name: the built-in ones, then those of installed plug-ins."""
    return (*BUILT_IN, *sorted(_plug_ins().keys() - BUILT_IN.keys()))


@functools.cache
def get_family(name: str) -> Family:
    """The family of that name. Raises FamilyError naming the nearest name, or with a plug-in's own error."""
    if name in BUILT_IN:
        place = importlib.metadata.EntryPoint(name, BUILT_IN[name], GROUP)
    elif name in _plug_ins():
        place = _plug_ins()[name]
    else:
        near = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.0)[0]
        raise FamilyError(f"model.family = {name!r} is not installed; did you mean {near!r}? Installed: "
                          f"{', '.join(names())}")
    try:
        family = place.load()
    except Exception as error:  # a plug-in may raise anything
        raise FamilyError(f"family {name!r} ({place.value}) cannot be imported: {type(error).__name__}: {error}") \
            from error
    if not isinstance(family, Family) or family.name != name:
        raise FamilyError(f"family {name!r}: {place.value} should be a Family of that name, found "
                          f"{getattr(family, 'name', type(family).__name__)!r}")
    return family


def all_families() -> list[Family]:
    """Every family that can be imported. Warns of those that cannot, and goes on with the others."""
    found = []
    for name in names():
        try:
            found.append(get_family(name))
        except FamilyError as error:
            warnings.warn(str(error), stacklevel=2)
    return found


def make_model(name: str, **sizes) -> Model:
    """The family of that name at those sizes. Raises ValueError on an unknown name or size, or sizes that do not
    fit."""
    return get_family(name).make_model(**sizes)


@functools.cache
def _plug_ins() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
