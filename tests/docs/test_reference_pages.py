"""The reference pages for recipe.toml and gate.toml hold every key with the default that the code gives it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import tomllib
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from hardbit.recipe import (
    Data,
    Evaluation,
    Network,
    Phase,
    Quantization,
    Recipe,
    RecipeError,
    Suite,
    Target,
    ThreatModel,
    Training,
    parse_recipe,
    schema,
)
from hardbit.recipe.defaults import INPUT_SHAPES, NETWORK_OPTIONS, RADII_255
from hardbit_deploy import gate
from hardbit_deploy.alarm import ACCEPTABLE
from hardbit_deploy.network_bits import NetworkBits
from hardbit_deploy.suite import SUITES, named_suite

DOCS = Path(__file__).parents[2] / "docs"
RECIPE_TABLES = {
    "Top level": {"": Recipe},
    "[network]": {"": Network},
    "[data]": {"": Data, "evaluation.": Evaluation},
    "[quantization]": {"": Quantization},
    "[threat_model]": {"": ThreatModel},
    "[training]": {"": Training},
    "[[training.phases]]": {"": Phase},
    "[suite]": {"": Suite},
    "[target]": {"": Target},
}
GATE_TABLES = {
    "[clean], [robust]": (gate.RateRule, schema.RateRule),
    "[attack]": (gate.AttackRule, schema.AttackRule),
    "[baseline]": (gate.BaselineRule, schema.BaselineRule),
    "[latency]": (gate.LatencyRule, schema.LatencyRule),
    "[environment]": (gate.EnvironmentRule, schema.EnvironmentRule),
    "[settings]": (gate.Settings, schema.GateSettings),
    "[[known_alarms]]": (gate.KnownAlarm, schema.KnownAlarm),
}
MINIMAL = """\
name = "x"
[network]
architecture = "lenet"
[data]
set = "fashion-mnist"
[[training.phases]]
epochs = 1
"""


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def tables(name: str) -> dict[str, dict[str, str]]:
    """heading -> key -> what stands in the column of defaults."""
    found: dict[str, dict[str, str]] = {}
    for part in re.split(r"^#+ ", page(name), flags=re.M)[1:]:
        heading, _, body = part.partition("\n")
        rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| .+ \|$", body, flags=re.M)
        if rows:
            found[heading] = dict(rows)
    return found


def toml_value(value: object) -> str:
    return "none" if value is None else f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def fields_of(models: dict[str, type[BaseModel]]) -> dict[str, object]:
    """key -> its default in the schema; nested tables are left to their own rows."""
    fields: dict[str, object] = {}
    for prefix, model in models.items():
        for key, field in model.model_fields.items():
            nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            if not nested:
                fields[prefix + key] = field.default
    return fields


def test_the_page_has_a_table_for_every_section_of_a_recipe() -> None:
    assert list(tables("recipe.md")) == list(RECIPE_TABLES)
    sections = {heading.strip("[]") for heading in tables("recipe.md")} - {"Top level", "training.phases"}
    assert sections == set(Recipe.model_fields) - {"name", "weights", "notes", "gate"}


@pytest.mark.parametrize("heading", RECIPE_TABLES)
def test_every_key_of_a_recipe_stands_there_with_its_default(heading: str) -> None:
    documented, fields = tables("recipe.md")[heading], fields_of(RECIPE_TABLES[heading])
    assert set(documented) == set(fields)
    for key, default in fields.items():
        if default is not PydanticUndefined and not (default is None and documented[key].startswith("by ")):
            assert documented[key] == toml_value(default)


def test_what_the_page_calls_required_is_what_the_shortest_recipe_says() -> None:
    documented = {(heading, key) for heading, rows in tables("recipe.md").items() for key in rows}
    required = {place for place in documented if tables("recipe.md")[place[0]][place[1]] == "required"}
    assert required == {
        ("Top level", "name"),
        ("[network]", "architecture"),
        ("[data]", "set"),
        ("[training]", "phases"),
        ("[[training.phases]]", "epochs"),
    }
    parse_recipe(MINIMAL)
    for line in MINIMAL.splitlines():
        if " = " in line:
            with pytest.raises(RecipeError, match="this key is missing"):
                parse_recipe(MINIMAL.replace(line, ""))


@pytest.mark.parametrize(
    ("heading", "key", "value"),
    [
        ("[threat_model]", "norm", parse_recipe(MINIMAL).threat_model.norm),
        ("[suite]", "name", parse_recipe(MINIMAL).suite.name),
        ("[[training.phases]]", "adversary", parse_recipe(MINIMAL).training.phases[0].adversary),
        ("[[training.phases]]", "random_start", parse_recipe(MINIMAL).training.phases[0].random_start),
    ],
)
def test_defaults_that_are_filled_in_are_those_of_the_page(heading: str, key: str, value: object) -> None:
    assert tables("recipe.md")[heading][key] == toml_value(value)


def test_defaults_that_depend_on_something_are_spelled_out() -> None:
    network, suite = tables("recipe.md")["[network]"], tables("recipe.md")["[suite]"]
    for architecture, options in NETWORK_OPTIONS.items():
        for key, value in {**options, "input_shape": INPUT_SHAPES[architecture]}.items():
            assert f"{architecture} {toml_value(value)}" in network[key]
    for name, settings in SUITES.items():
        for key in ("steps", "restarts", "losses", "square_queries", "attacks", "corruption_images"):
            assert f"{name} {toml_value(getattr(settings, key))}" in suite[key]
    quick, few = SUITES["quick"], named_suite("quick", NetworkBits(1, 1))
    both = toml_value(few.surrogates)
    rule = f"by bits: {toml_value(quick.surrogates)}, below 4 bits of anything and in full {both}"
    assert suite["surrogates"] == rule
    assert suite["square_queries"].endswith(f"at least {toml_value(few.square_queries)}")
    radii = (f"{name} `{radius['linf']}` in linf, `{radius['l2']}` in l2" for name, radius in RADII_255.items())
    assert tables("recipe.md")["[threat_model]"]["eps_255"] == f"by set: {'; '.join(radii)}"


@pytest.mark.parametrize("heading", GATE_TABLES)
def test_every_key_of_a_gate_stands_there_with_its_default(heading: str) -> None:
    documented = tables("gate.md")[heading]
    for model in GATE_TABLES[heading]:
        if isinstance(model, type) and issubclass(model, BaseModel):
            fields = {key: field.default for key, field in model.model_fields.items()}
        else:
            fields = {field.name: field.default for field in dataclasses.fields(model)}
        assert set(documented) == set(fields)
        for key, default in fields.items():
            is_required = default in (PydanticUndefined, dataclasses.MISSING)
            assert documented[key] == ("required" if is_required else toml_value(default))


def test_every_example_of_a_gate_is_one() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", page("gate.md"), flags=re.S)
    parsed = gate.parse_gate(tomllib.loads(text))
    assert parsed.latency is not None
    assert parsed.latency.max_p99_ms == 20.0
    assert [alarm.most for alarm in parsed.known_alarms] == [0.3]


def test_the_page_on_gates_names_the_alarms_that_may_be_known() -> None:
    (row,) = re.findall(r"^\| `name` \| required \| (`\"gradients\"`.*?);", page("gate.md"), flags=re.M)
    assert tuple(re.findall(r'"(\w+)"', row)) == ACCEPTABLE == get_args(schema.KnownAlarmName)


def test_every_example_of_a_recipe_is_one(tmp_path: Path) -> None:
    labels = np.arange(1000) % 43
    images = np.zeros((1000, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "signs.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    small, signs, layers = re.findall(r"```toml\n(.*?)```", page("recipe.md"), flags=re.S)
    assert parse_recipe(small, folder=tmp_path).quantization.weights == 8
    assert parse_recipe(signs, folder=tmp_path).network.classes == 43
    assert parse_recipe(MINIMAL + layers, folder=tmp_path).quantization.layers["stages.0.relu1"] == 4
