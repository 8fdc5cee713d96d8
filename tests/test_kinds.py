"""The one reader of JSON: what breaks a rule is said in a sentence with the place, what was expected and found."""

import dataclasses

import pytest

from world_model import kinds

SIZES = kinds.fields({"size": kinds.whole(1), "rate": kinds.number(1e-3, 1e6), "name": kinds.text,
                      "place": kinds.row(kinds.text, kinds.list_of(kinds.whole())),
                      "maybe": kinds.optional(kinds.true_or_false), "code": kinds.either(kinds.whole(), kinds.text),
                      "kind": kinds.one_of("a", "b"), "any": kinds.MAP}, required=("size",))


@pytest.mark.parametrize("text, said", [
    ("{", "FILE is not JSON: "), (b"\xff\xfe", "FILE is not UTF-8"), ("[" * 100_000, "FILE is not JSON|deep"),
    ('{"size":' + "[" * 300 + "]" * 300 + "}", "FILE has lists and maps inside each other more than 64 deep"),
    ("[]", r"FILE = \[\]: expected a map"), ("{}", "FILE has no 'size'"), ('{"size": 1, "size": 2}', "size is there twice"),
    ('{"size": null}', "FILE: size = None: expected a whole number of 1 to 2147483648"), ('{"size": 0}', "size = 0"),
    ('{"size": 1099511627776}', "size = 1099511627776: expected"), ('{"size": true}', "size = True"),
    ('{"size": 1, "rate": NaN}', "rate = nan: expected a number of 0.001 to 1e"), ('{"size": 1, "rate": 0}', "rate = 0"),
    ('{"size": 1, "rate": 1' + "0" * 400 + "}", "rate = 100"), ('{"size": 1' + "0" * 5000 + "}", "FILE is not JSON"),
    ('{"size": 1, "name": ["x"]}', r"name = \['x'\]: expected a text"),
    ('{"size": 1, "place": ["x"]}', r"place = \['x'\]: expected a list of 2"),
    ('{"size": 1, "place": ["x", [0, -1]]}', r"place\[1\]\[1\] = -1: expected a whole"),
    ('{"size": 1, "maybe": 1}', "maybe = 1: expected true or false"),
    ('{"size": 1, "code": []}', r"code = \[\]: expected a whole number of 0 to 2147483648 or a text"),
    ('{"size": 1, "kind": "c"}', "kind = 'c': expected one of a, b"), ('{"size": 1, "kind": []}', "one of a, b"),
    ('{"size": 1, "any": [1]}', r"any = \[1\]: expected a map")])
def test_what_breaks_a_rule_is_said(text, said):
    with pytest.raises(ValueError, match=said):
        kinds.parse(text, SIZES, "FILE")


def test_what_fits_comes_back():
    text = b'\xef\xbb\xbf{"size": 3, "rate": 29.97, "place": ["x", [0, 1]], "maybe": null, "code": "a", "kind": "b", "any": {}}'
    assert kinds.parse(text, SIZES, "FILE") == {"size": 3, "rate": 29.97, "place": ["x", [0, 1]], "maybe": None,
                                                "code": "a", "kind": "b", "any": {}}
    assert kinds.plain({1: (2, 3)}) == {"1": [2, 3]}


def test_lines(tmp_path):
    assert kinds.lines('{"a": "\u2028"}\n\n{"a": 1}\n', kinds.MAP, "FILE") == [{"a": "\u2028"}, {"a": 1}]
    with pytest.raises(ValueError, match="FILE line 3 = 4: expected a map"):
        kinds.lines("{}\n\n4", kinds.MAP, "FILE")
    (tmp_path / "x.json").write_text("[")
    with pytest.raises(ValueError, match="x.json is not JSON"):
        kinds.read(tmp_path / "x.json", kinds.anything)


@dataclasses.dataclass
class Robot:
    name: str
    joints: tuple[int, ...]
    rate: float = 1.0
    left: bool | None = None

    def __post_init__(self):
        if self.rate > 9:
            raise ValueError(f"rate = {self.rate} is too fast")


@pytest.mark.parametrize("value, said", [
    ([], r"ROBOT = \[\]: expected a map"), ({"name": "a"}, "ROBOT has no 'joints'"),
    ({"name": "a", "joints": [], "wings": 2}, "ROBOT: wings is unknown; known are name, joints, rate, left"),
    ({"name": "a", "joints": [1, "b"]}, r"ROBOT: joints\[1\] = 'b': expected a whole"),
    ({"name": "a", "joints": 3}, "ROBOT: joints = 3: expected a list"),
    ({"name": "a", "joints": [], "left": "x"}, "ROBOT: left = 'x': expected true or false"),
    ({"name": "a", "joints": [], "rate": 10}, "ROBOT: rate = 10 is too fast")])
def test_arguments_are_as_they_are_annotated(value, said):
    with pytest.raises(ValueError, match=said):
        kinds.make(Robot, value, "ROBOT")


def test_objects_are_made():
    assert kinds.make(Robot, {"name": "a", "joints": [1], "left": None}, "", joints=(1,)) == Robot("a", (1,))


def test_what_is_like_an_example():
    rule = kinds.like({"a": {"b": 1.0, "c": ("x",)}, "d": "", "e": False, "f": None})
    assert not rule({"a": {"b": 2, "c": [], "other": []}, "d": "x", "f": 3})
    assert rule({"a": {"b": "2"}}) == ": a: b = '2': expected a finite number"
    assert rule({"a": []}) == ": a = []: expected a map" and rule({"e": 1}) == ": e = 1: expected true or false"
