"""card.md: every part of a card is said, float models in words that fit them."""

import re

from hardbit.report.card import model_card, scores
from zoo_examples import RATES, card, document


def text(made):
    return model_card(made).replace("\u00a0", " ")


def test_every_attack_has_a_row_with_its_interval():
    rows = re.findall(r"^\| (.+) \| ([\d,]+) of 2,000 \| ([\d.]+) % \| [\d.]+ – [\d.]+ % \|$", text(card()), re.M)
    assert [float(rate) / 100 for _, _, rate in rows] == list(RATES.values())
    assert [name for name, _, _ in rows][4:7] == [
        "PGD-20 margin, smooth surrogate", "Square-1500", "transfer from fashion-cnn-float",
    ]  # fmt: skip


def test_the_engine_the_data_the_time_and_the_strongest_attack_are_said():
    page = text(card())
    for said in (
        "weights in 4 bits (8 bits in the first and last layer), activations in 4 bits",
        "Engine: onnxruntime 1.32.0, a graph of 444,384 bytes. Layers proved to run on integer kernels: 4.",
        "2,000 of 10,000 test images of fashion-mnist",
        "The strongest single attack was PGD-20 margin, smooth surrogate: 67.0 % survived it.",
        "median 0.0214 ms, 90th percentile 0.0227 ms, 99th 0.0286 ms, on AMD EPYC.",
        "Quantization-aware adversarial training with Brevitas, from random weights (seed 0), batch 128, 1 thread: 13",
        f"Data: 60,000 images; Fashion-MNIST train. SHA-256 of all images and labels of the split: `{'ab' * 32}`.",
        "- One seed.",
        "- Checks of the evaluation that passed: parity.",
        "hardbit run models/example-w4a4/recipe.toml --retrain --publish",
    ):
        assert said in page, said
    assert scores(card()) in model_card(card())


def test_a_float_model_is_called_one():
    page = text(card("example-float", 32, 32))
    assert "10 classes, in 32-bit float throughout." in page
    assert "No layer runs on an integer kernel. In float, because the recipe says so: `conv1`." in page
    assert "Adversarial training in float, from random weights" in page
    assert "| float, float |" in page
    assert "32 bits" not in page


def test_widths_of_single_layers_and_weights_alone():
    bits = {"weights": 1, "activations": 32, "first_layer": 8, "last_layer": 4, "layers": {"conv2": 2}}
    page = text(card(bits=bits))
    assert (
        "weights in 1 bit (8 bits in the first and 4 bits in the last), activations in float, `conv2` in 2 bits" in page
    )


def test_what_was_held_out_is_said():
    data = {**document()["data"], "held_out": 512, "provenance": "CIFAR-10 train: 45,000 of 50,000"}
    assert "Data: 60,000 images, after 512 were held out; CIFAR-10 train: 45,000 of 50,000." in text(card(data=data))


def test_what_speaks_against_a_number_is_said():
    training = {**document()["training"], "overfitting_epochs": [3, 4], "teacher": "../example-float"}
    alarms = [
        {"name": "white_box", "status": "alarm", "reason": "50 of 2000 images fall to Square alone"},
        {"name": "converged", "status": "not_run", "reason": "quick suite"},
    ]
    page = text(card(training=training, alarms=alarms, verdict="INCONCLUSIVE", latency=None, agreement=[]))
    for said in (
        "Verdict: **INCONCLUSIVE**",
        "- ALARM: white box (50 of 2000 images fall to Square alone).",
        "- Not run: converged (quick suite).",
        "Catastrophic overfitting was seen in epoch 3, 4",
        "with the teacher `../example-float`",
    ):
        assert said in page, said
    assert "Latency" not in page
    assert "twins" not in page
    assert "\n\n\n" not in page
