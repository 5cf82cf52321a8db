"""Whatever a file holds, what is wrong with it is one error of the caller's kind, on one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict
from r1_cluster.reading import read_text, read_yaml


class Faulty(ValueError):
    pass


class Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    names: tuple[str, ...] = ()
    count: int = 0


def read(text: str, *, secret: bool = False) -> Value:
    return read_yaml(Value, text, source="a.yaml", whole="value", error=Faulty, secret=secret)


def test_lists_become_tuples() -> None:
    assert read("{names: [a, b], count: 2}") == Value(names=("a", "b"), count=2)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "expected a mapping at the top, got NoneType"),
        ("- a", "expected a mapping at the top, got list"),
        ("{", "not YAML"),
        ("when: 2020-13-45", "not YAML: month must be in 1..12"),
        ("a: " + "[" * 5000, "not YAML"),
        ("2020-01-01: 1", "not plain mappings"),
        ("names: &a [*a]", "not plain mappings"),
        ('count: "2"', "count: Input should be a valid integer"),
        ("cuont: 2", "cuont: Extra inputs"),
    ],
)
@pytest.mark.parametrize("secret", [False, True])
def test_a_fault_is_one_line_that_names_the_file_and_the_place(text: str, named: str, secret: bool) -> None:
    with pytest.raises(Faulty) as refused:
        read(text, secret=secret)
    assert str(refused.value).startswith("a.yaml: ")
    assert (named.split(":")[0] if secret else named) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["names: *hushed", "names: !hushed x", "names: [hushed", "count: hushed"])
def test_an_error_about_a_secret_file_quotes_no_value_and_has_no_cause_that_does(text: str) -> None:
    with pytest.raises(Faulty) as refused:
        read(text, secret=True)
    assert "hushed" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(("content", "named"), [(None, "No such file"), (b"\xff", "not UTF-8 text")])
def test_a_file_that_is_no_text_is_refused_by_name(tmp_path: Path, content: bytes | None, named: str) -> None:
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Faulty, match=rf"a\.yaml: {named}"):
        read_text(path, source="a.yaml", error=Faulty)
