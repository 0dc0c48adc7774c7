"""The page on attack graphs names every operator that has a rule, and no other."""

import re
from pathlib import Path

from hardbit.graph.gradient import supported_operators

PAGE = Path(__file__).parents[2] / "docs/gradients.md"
WRITTEN_OUT = {"Gelu", "GroupNormalization"}  # in operators of opset 18, before any rule is asked


def test_the_table_of_operators_is_that_of_the_rules():
    table = PAGE.read_text().partition("| family |")[2].partition("\n\n")[0]
    cells = [row.split("|")[2] for row in table.splitlines() if row.startswith("| ") and row.count("|") == 3]
    named = set(re.findall(r"\b[A-Z][A-Za-z0-9]+\b", " ".join(cells)))
    assert named == set(supported_operators()) | WRITTEN_OUT
