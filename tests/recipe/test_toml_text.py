"""Writing TOML, and the lines of keys in it: both against the standard library's reader."""

import pytest
import tomllib
from hypothesis import given
from hypothesis import strategies as st

from hardbit.recipe.toml_text import key_lines, to_toml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALAR = st.one_of(TEXT, st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False))
VALUE = st.one_of(SCALAR, st.lists(SCALAR, max_size=3))
DOCUMENT = st.recursive(
    st.dictionaries(TEXT, VALUE, max_size=4),
    lambda tables: st.dictionaries(TEXT, VALUE | tables | st.lists(tables, min_size=1, max_size=3), max_size=4),
    max_leaves=8,
)


@given(DOCUMENT)
def test_what_is_written_is_read(document):
    assert tomllib.loads(to_toml(document)) == document


def test_plain_values_stand_before_tables():
    assert to_toml({"a": {"b": 1}, "c": [{"d": True}, {"d": 2.0}], "e": "x"}) == (
        'e = "x"\n\n[a]\nb = 1\n\n[[c]]\nd = true\n\n[[c]]\nd = 2.0\n'
    )


def test_values_without_a_form_are_refused():
    with pytest.raises(TypeError, match="NoneType"):
        to_toml({"a": None})


EXAMPLE = '''\
name = "x"  # a comment with [brackets] and "quotes

[data]
set = """
not = a key
[nor a table]
"""
evaluation = { split = "test",
count = 3 }
list = [
    1,  # ]
    2,
]
after = 1
"quoted key" = 1
a . b = 2

[[training.phases]]
epochs = 1
[[training.phases]]
epochs = 2
[training.phases.inner]
deep = 'its'
[ gate . robust ]
reference = 0.5'''


def test_lines_of_keys_headers_and_elements():
    lines = key_lines(EXAMPLE)
    assert lines == {
        ("name",): 1,
        ("data",): 3,
        ("data", "set"): 4,
        ("data", "evaluation"): 8,
        ("data", "list"): 10,
        ("data", "after"): 14,
        ("data", "quoted key"): 15,
        ("data", "a"): 16,
        ("data", "a", "b"): 16,
        ("training", "phases", 0): 18,
        ("training", "phases", 0, "epochs"): 19,
        ("training", "phases", 1): 20,
        ("training", "phases", 1, "epochs"): 21,
        ("training", "phases", 1, "inner"): 22,
        ("training", "phases", 1, "inner", "deep"): 23,
        ("gate", "robust"): 24,
        ("gate", "robust", "reference"): 25,
    }


@given(DOCUMENT)
def test_every_key_has_a_line_that_holds_it(document):
    text = to_toml(document)
    lines = key_lines(text)
    rows = text.split("\n")

    def visit(table, path):
        for key, value in table.items():
            if isinstance(value, dict):
                visit(value, (*path, key))
            elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
                for number, element in enumerate(value):
                    visit(element, (*path, key, number))
            else:
                row = rows[lines[(*path, key)] - 1]
                assert tomllib.loads(row) == {key: value}

    visit(document, ())
