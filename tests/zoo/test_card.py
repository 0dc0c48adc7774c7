"""card.json: what is written is read, its schema is the published one, and every defect is named."""

import json
from importlib import resources

import jsonschema
import pytest

from hardbit.recipe import parse_recipe
from hardbit.report.card import model_card
from hardbit.zoo import read_card
from hardbit.zoo.card import card_schema, card_text
from hardbit.zoo.make import make_card
from hardbit_deploy.errors import HardbitError
from result_examples import example_run, outcome, rate_entry
from zoo_examples import card, document

PUBLISHED = json.loads(resources.files("hardbit.zoo").joinpath("card-v1.json").read_text())
RECIPE = """\
name = "example"
notes = "A note."
[network]
architecture = "lenet"
[data]
set = "fashion-mnist"
[[training.phases]]
epochs = 2
adversary = "fgsm"
[[training.phases]]
epochs = 1
frozen = true
"""
HISTORY = [
    {"epoch": 1, "adversarial_accuracy": 0.5, "seconds": 60.0},
    {"epoch": 2, "adversarial_accuracy": 0.6, "seconds": 60.0, "overfitting": True, "pgd": 0.3},
    {"epoch": 3, "adversarial_accuracy": 0.7, "seconds": 120.5},
]
LOG = {
    "data": "Fashion-MNIST train, as published",
    "data_sha256": "ab" * 32,
    "images": 60_000,
    "history": HISTORY,
}
MANIFEST = {
    "network": {"bits": {"weights": 4, "activations": 2, "first_layer": 8, "last_layer": 8, "layers": {"conv2": 2}}},
    "engine": {"integer_nodes": [{"name": "conv1"}], "float_nodes": [{"name": "fc2", "reason": "its sum is wide"}]},
    "provenance": {"weights_sha256": "ef" * 32},
}


def made(result, log=LOG, bits=None):
    """The card of a result; `bits` replace those of `MANIFEST`."""
    manifest = {**MANIFEST, "network": {"bits": {**MANIFEST["network"]["bits"], **(bits or {})}}}
    sizes = {"bundle/engine.onnx": 10}
    return make_card(parse_recipe(RECIPE), result, log, manifest, parameters=7, files=sizes, command="again")


def with_attacks(**rates):
    """A result with these rows between clean and the worst case."""
    result, _ = example_run()
    clean, _, worst = result["attacks"]
    rows = [rate_entry(name.replace("__", " "), outcome(2000, survivors)) for name, survivors in rates.items()]
    return {**result, "attacks": [clean, *rows, worst]}


def test_what_is_written_is_read(tmp_path):
    (tmp_path / "card.json").write_text(card_text(card()))
    assert read_card(tmp_path / "card.json") == card()


def test_the_published_schema_is_that_of_the_code_and_every_card_is_valid_by_it():
    """Made anew by: python -c 'import json; from hardbit.zoo.card import card_schema; print(json.dumps(card_schema(),
    indent=1))' > toolchain/hardbit/zoo/card-v1.json"""
    assert json.loads(json.dumps(card_schema())) == PUBLISHED
    for each in (card(), made(example_run()[0])):
        jsonschema.validate(json.loads(card_text(each)), PUBLISHED)
    with pytest.raises(jsonschema.ValidationError, match="'robust' was unexpected"):
        jsonschema.validate(document(robust=0.7), PUBLISHED)


def test_a_run_becomes_a_card():
    found = made(with_attacks(fgsm=1500, **{"pgd-20__margin": 1400, "square-500": 1350}))
    assert found.worst_attack == "square-500"
    assert found.strongest("pgd").survivors == 1400
    assert found.data.provenance == "Fashion-MNIST train, as published"
    assert (found.data.images, found.data.sha256, found.evaluation.published) == (60_000, "ab" * 32, 10_000)
    assert found.bits.layers == {"conv2": 2}
    assert [(layer.name, layer.reason) for layer in found.engine.float_layers] == [("fc2", "its sum is wide")]
    assert found.engine.runtime == "onnxruntime 1.22.0"
    assert found.training.seconds == 240.5
    assert found.training.overfitting_epochs == (2,)
    phases = [
        (phase.adversary, phase.adversarial_accuracy, phase.held_out_pgd_accuracy) for phase in found.training.phases
    ]
    assert phases == [("fgsm", 0.6, 0.3), ("pgd-7", 0.7, None)]
    assert found.latency.processor == "AMD EPYC"


def test_weights_without_a_log_make_a_card_that_says_so():
    found = made(example_run()[0], log={"source": "given"})
    assert (found.data.provenance, found.data.sha256, found.training.seconds) == ("not recorded", None, 0)
    assert found.training.phases[0].adversarial_accuracy is None


def test_doubts_follow_from_the_numbers():
    notes = made(example_run()[0]).notes
    assert notes[0] == "A note."
    assert notes[1].startswith("One network of one seed (0)")
    assert notes[2] == "2,000 test images: a rate is known to about 2 points either way at 95 % confidence."
    wide = {"activations": 4, "layers": {}}
    assert made(example_run()[0], bits=wide).notes[3].startswith("No attack without gradients was run")
    assert "about 3 points" in made(example_run(images=1000, clean=700, robust=350)[0]).notes[2]


@pytest.mark.parametrize(
    ("attacks", "bits", "doubted"),
    [
        ({"square-500": 1400}, {"activations": 4, "layers": {}}, False),
        ({"square-500": 1400}, {"activations": 2, "layers": {}}, True),
        ({"square-500": 1400}, {"activations": 4, "layers": {"relu1": 2}}, True),
        ({"pgd-20__margin__smooth": 1400}, {"activations": 2}, True),
        ({"square-500": 1400, "pgd-20__margin__smooth": 1400}, {"activations": 2}, False),
    ],
)
def test_few_bits_ask_for_all_attacks(attacks, bits, doubted):
    notes = made(with_attacks(**attacks), bits=bits).notes
    assert any("upper bound only" in note for note in notes) is doubted
    assert not any("without gradients" in note for note in notes)


def test_alarms_are_among_the_doubts():
    result, _ = example_run()
    for status in ("alarm", "accepted"):
        result["alarms"][0]["status"] = status
        assert any(note.startswith("Alarms went off (parity)") for note in made(result).notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "hardbit-result"}, 'this is not a card: its "format" is not hardbit-card'),
        ({"schema_version": 2}, "it has schema version 2, this hardbit reads 1"),
        ({"verdict": None}, "this card is damaged: verdict: Input should be a valid string"),
        ({"attacks": [{"name": "clean"}]}, r"this card is damaged: attacks\.0\.images: Field required"),
        ({"robust": 0.7}, "this card is damaged: robust: Extra inputs are not permitted"),
    ],
)
def test_each_defect_is_named(tmp_path, change, message):
    file = tmp_path / "card.json"
    file.write_text(json.dumps(document(**change)))
    with pytest.raises(HardbitError, match=message):
        read_card(file)


def test_what_is_no_card_at_all(tmp_path):
    with pytest.raises(HardbitError, match="cannot be read: No such file"):
        read_card(tmp_path / "card.json")
    (tmp_path / "card.json").write_text("[1")
    with pytest.raises(HardbitError, match=r"this card is not JSON: .*'hardbit run RECIPE --publish' writes it again"):
        read_card(tmp_path / "card.json")


def test_an_attack_on_what_others_left_standing_is_no_attack_by_itself():
    result = with_attacks(**{"pgd-20 margin": 1400})
    further = {**result["attacks"][-1], "name": "pgd-100 tempered", "attacked": 1400, "fell": 20, "rate": 0.69}
    result["attacks"].insert(-1, further)
    card = made(result)
    assert card.worst_attack == "pgd-20 margin"
    assert card.strongest("pgd").name == "pgd-20 margin"
    assert (card.attack("pgd-100 tempered").attacked, card.attack("pgd-100 tempered").fell) == (1400, 20)
    assert "felled of it: PGD-100 tempered 20 of 1,400. Their rows count what stands after them." in model_card(card)
    assert "Further attacks" not in model_card(made(with_attacks()))
