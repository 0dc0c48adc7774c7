"""Numbers and sentences as people read them."""

from __future__ import annotations

import pytest

import report_examples as examples
from hardbit.report import wording


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"),
        (0, "0"),
        (0.0, "0"),
        (2000, "2,000"),
        (0.99, "0.99"),
        (0.0625, "0.0625"),
        (12.34567, "12.35"),
        (9.5e-7, "9.5e-7"),
        (-0.0385, "-0.0385"),
        (1234567.0, "1.235e6"),
        (float("nan"), "nan"),
        (True, "True"),
        ("text", "text"),
    ],
)
def test_numbers_are_short_and_keep_their_digits(value: object, written: str) -> None:
    assert wording.number(value) == written


@pytest.mark.parametrize(("ms", "written"), [(0.28, "0.280\u00a0ms"), (5.0, "5.00\u00a0ms"), (123.4, "123\u00a0ms")])
def test_times_have_three_significant_digits(ms: float, written: str) -> None:
    assert wording.milliseconds(ms) == written


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("clean", "clean"),
        ("fgsm", "FGSM"),
        ("pgd-20 cross_entropy", "PGD-20 cross-entropy"),
        ("worst_case", "worst case of all attacks"),
        ("pgd-20 margin smooth", "PGD-20 margin, smooth surrogate"),
        ("square-1500", "Square-1500"),
        ("transfer fashion-cnn-float", "transfer from fashion-cnn-float"),
    ],
)
def test_attacks_are_called_what_people_call_them(name: str, label: str) -> None:
    assert wording.attack_label(name) == label


def test_a_perturbation_names_its_norm_and_its_grey_levels() -> None:
    assert "at most 2 of 255 grey levels (L∞)" in wording.perturbation({"norm": "linf", "eps_255": 2.0})
    assert "Euclidean distance of at most 127.5 grey levels (L2)" in wording.perturbation(
        {"norm": "l2", "eps_255": 127.5}
    )


def test_settings_do_not_repeat_what_is_said_elsewhere() -> None:
    told = {"norm": "linf", "eps_255": 25.0, "loss": "margin", "seed": 0}
    settings = {"steps": 20, "step_255": 3.125, "restarts": 3}
    assert wording.settings_line(told | settings) == "steps 20 · step 3.125/255 · restarts 3"


def test_a_setting_of_several_words_lists_them() -> None:
    line = wording.settings_line({"steps": 20, "surrogates": ["straight-through", "smooth"]})
    assert line == "steps 20 · surrogates straight-through, smooth"


def test_an_undecided_gate_says_how_many_images_it_needs() -> None:
    document = examples.document("INCONCLUSIVE")
    needed = max(rule["images_needed"] for rule in document["gate"] if rule["status"] == "inconclusive")
    assert any(f"{needed:,} images" in step for step in wording.next_steps(document))


def test_an_alarm_is_to_be_resolved_first() -> None:
    assert "converged" in wording.next_steps(examples.document("INCONCLUSIVE"))[0]


def test_a_broken_rule_and_a_node_that_fell_back_are_named() -> None:
    assert "Rules broken: robust" in wording.next_steps(examples.document("FAIL"))[0]
    assert "conv2" in wording.next_steps(examples.document("WRONG_ENGINE"))[0]


def test_a_gate_broken_by_time_alone_asks_for_no_retraining() -> None:
    document = examples.document()
    document["verdict"]["name"] = "FAIL"
    document["gate"][-1]["status"] = "fail"
    (step,) = wording.next_steps(document)
    assert "faster" in step
    assert "Retrain" not in step


def test_a_verdict_of_a_later_version_is_shown_by_its_name() -> None:
    assert "does not know" in wording.verdict_wording("PERHAPS").headline


def test_a_long_list_is_cut_with_a_count() -> None:
    assert wording.listing(list("abcdef")) == "a, b, c, d and 2 more"
    assert wording.listing(["a"]) == "a"
