"""Every alarm: quiet where it should be, raised at its threshold, honest where it has nothing to count."""

from __future__ import annotations

import pytest

from hardbit_deploy import alarms, attack_alarms
from hardbit_deploy.alarms import CurvePoint
from hardbit_deploy.attack_specs import parse_attack
from hardbit_deploy.network_bits import NetworkBits
from hardbit_deploy.statistics import clopper_pearson

EIGHT = NetworkBits()
APGD, TARGETED = parse_attack("apgd-50 cross_entropy"), parse_attack("apgd-100 targeted-9")


@pytest.mark.parametrize(
    ("alarm", "status"),
    [
        (alarms.parity([("twin_clean", 1000, 10)]), "pass"),
        (alarms.parity([("twin_clean", 1000, 0), ("attack_graph_adversarial", 1000, 11)]), "alarm"),
        (alarms.parity([("attack_graph_adversarial", 0, 0)]), "not_run"),
        (alarms.determinism(0, 64), "pass"),
        (alarms.determinism(1, 64), "alarm"),
        (alarms.determinism(0, 0), "not_run"),
        (alarms.logits(2, 0, 2, 256), "pass"),
        (alarms.logits(256, 0, 0, 256), "alarm"),
        (alarms.logits(0, 1, 0, 100_000), "alarm"),
        (alarms.logits(0, 0, 3, 256), "alarm"),
        (alarms.gradients([("margin at the image", 100, 5)]), "pass"),
        (alarms.gradients([("margin at the image", 100, 0), ("margin at a random start", 100, 6)]), "alarm"),
        (alarms.gradients([("margin at the image", 0, 0)]), "not_run"),
        (attack_alarms.iterative_beats_one_step(10, 2000), "pass"),
        (attack_alarms.iterative_beats_one_step(11, 2000), "alarm"),
        (attack_alarms.iterative_beats_one_step(1, 20), "pass"),
        (alarms.feasible(0, 0, 2000), "pass"),
        (alarms.feasible(1, 0, 2000), "alarm"),
        (alarms.feasible(0, 1, 2000), "alarm"),
        (alarms.converged([("more", 0, 0)]), "not_run"),
        (alarms.converged([("more", 0, 512), ("queries", 3, 128)]), "alarm"),
        (alarms.converged([("more", 5, 512), ("queries", 2, 128)]), "pass"),
        (attack_alarms.white_box_beats_black_box(2, 100, EIGHT, was_run=True), "pass"),
        (attack_alarms.white_box_beats_black_box(3, 100, EIGHT, was_run=True), "alarm"),
        (attack_alarms.white_box_beats_black_box(20, 2000, EIGHT, was_run=True), "pass"),
        (attack_alarms.white_box_beats_black_box(21, 2000, EIGHT, was_run=True), "alarm"),
        (attack_alarms.white_box_beats_black_box(0, 2000, EIGHT, was_run=False), "not_run"),
        (attack_alarms.white_box_beats_black_box(0, 2000, NetworkBits(8, 4), was_run=False), "not_run"),
        (attack_alarms.white_box_beats_black_box(0, 2000, NetworkBits(8, 3), was_run=False), "alarm"),
        (attack_alarms.white_box_beats_black_box(0, 0, NetworkBits(8, 3), was_run=False), "not_run"),
        (attack_alarms.white_box_beats_black_box(1, 100, EIGHT, was_run=True, further={"spsa-40": 1}), "pass"),
        (attack_alarms.white_box_beats_black_box(1, 100, EIGHT, was_run=True, further={"spsa-40": 2}), "alarm"),
        (attack_alarms.white_box_beats_black_box(0, 100, EIGHT, was_run=False, further={"spsa-40": 2}), "pass"),
        (attack_alarms.white_box_beats_black_box(0, 100, EIGHT, was_run=False, further={"spsa-40": 3}), "alarm"),
        (attack_alarms.white_box_beats_black_box(0, 9, NetworkBits(8, 3), was_run=False, further={"s": 0}), "alarm"),
        (attack_alarms.white_box_beats_transfer({"a": 5, "b": 18, "all": 20}, 2000), "pass"),
        (attack_alarms.white_box_beats_transfer({"a": 5, "b": 18, "all": 21}, 2000), "alarm"),
        (attack_alarms.white_box_beats_transfer({"a": 1, "all": 1}, 20), "pass"),
        (attack_alarms.white_box_beats_transfer({}, 2000), "not_run"),
        (attack_alarms.noise_does_not_win(1, 256), "pass"),
        (attack_alarms.noise_does_not_win(2, 256), "alarm"),
        (attack_alarms.noise_does_not_win(0, 0), "not_run"),
        (attack_alarms.losses({"margin": 9}, 20, [("tempered", 5, 256)]), "pass"),
        (attack_alarms.losses({"margin": 9}, 20, [("cross_entropy", 0, 256), ("tempered", 6, 256)]), "alarm"),
        (attack_alarms.losses({"margin": 9}, 20, [("tempered", 2, 20)]), "pass"),
        (attack_alarms.losses({"margin": 9}, 20, [("tempered", 3, 20)]), "alarm"),
        (attack_alarms.losses({"margin": 9, "cross_entropy": 3}, 20, []), "pass"),
        (attack_alarms.losses({"margin": 9}, 20, [("tempered", 0, 0)]), "pass"),
        (attack_alarms.losses({"margin": 0}, 0, []), "not_run"),
        (attack_alarms.stronger_attacks({}, 512), "not_run"),
        (attack_alarms.stronger_attacks({APGD: 0}, 0), "not_run"),
        (attack_alarms.stronger_attacks({APGD: 34}, 512), "pass"),
        (attack_alarms.stronger_attacks({APGD: 15, TARGETED: 20}, 512), "alarm"),
        (attack_alarms.surrogates({"straight-through": 9}, 100, EIGHT), "not_run"),
        (attack_alarms.surrogates({"straight-through": 9}, 100, NetworkBits(3, 8)), "alarm"),
        (attack_alarms.surrogates({"straight-through": 9, "smooth": 60}, 100, NetworkBits(3, 8)), "pass"),
    ],
)
def test_each_rule_at_its_threshold(alarm, status):
    assert alarm.status == status


def test_the_reason_carries_the_numbers_of_the_worst_case():
    alarm = alarms.parity([("twin_clean", 1000, 3), ("attack_graph_adversarial", 1000, 40)])
    assert alarm.value == pytest.approx(0.96)
    assert alarm.threshold == 0.99
    assert alarm.reason == "least agreement is with attack_graph_adversarial: 40 of 1000 labels differ"
    assert "6 of 100 gradients" in alarms.gradients([("x", 100, 6)]).reason
    transfer = attack_alarms.white_box_beats_transfer({"a": 5, "b": 18, "all": 21}, 2000)
    assert transfer.reason.endswith(
        "21 of 2000 images are fooled by transfer and by no attack that uses gradients (a 5, b 18)"
    )
    assert transfer.value == 21 / 2000
    surrogates = attack_alarms.surrogates({"straight-through": 9, "smooth": 60}, 100, EIGHT)
    assert (surrogates.value, surrogates.threshold) == (0.6, None)


def test_further_attacks_are_told_of_where_they_find_over_a_point_or_beat_pgd_with_its_own_loss():
    told = attack_alarms.stronger_attacks({APGD: 3, TARGETED: 7}, 600)
    assert told.status == "pass"
    assert told.value == 10 / 600
    assert told.reason == (
        "of 600 images fall to further attacks alone: apgd-50 cross_entropy 3, apgd-100 targeted-9 7; "
        "without apgd-100 targeted-9 robust accuracy would be overstated by over a point"
    )
    beaten = attack_alarms.stronger_attacks({APGD: 4, TARGETED: 6}, 600)
    assert beaten.status == "pass"
    assert beaten.reason.endswith("; apgd-50 cross_entropy beats PGD by over half a point, so PGD had not converged")


def test_a_loss_that_is_left_out_is_named_with_what_it_finds():
    alarm = attack_alarms.losses({"cross_entropy": 300}, 512, [("margin", 30, 256), ("tempered", 1, 256)])
    assert alarm.value == 30 / 256
    assert alarm.reason == (
        "of 512 images survive PGD with cross_entropy 300; left out, margin fools 30 of 256 more, "
        "tempered fools 1 of 256 more"
    )


def test_an_engine_that_rolls_dice_says_what_became_of_its_gradients():
    assert alarms.determinism(3, 64, gradient_draws=20).reason.endswith(
        "; gradients are means of 20 draws, and one draw that fails is a fall"
    )


@pytest.mark.parametrize("images", [128, 512, 2000])
def test_convergence_is_doubted_exactly_when_half_a_point_is_exceeded_at_95_percent(images):
    def alarm(steps: int, restarts: int = 0):
        return alarms.converged([("twice the steps", steps, images), ("another restart", restarts, images)])

    first = next(gain for gain in range(images) if alarm(gain).status == "alarm")
    assert clopper_pearson(first, images, 0.90)[0] > 0.005 >= clopper_pearson(first - 1, images, 0.90)[0]
    assert alarm(0, first).status == "alarm"
    assert alarm(first - 1, first - 1).status == "pass"
    assert alarm(first, 1).value == first / images
    assert f"twice the steps {first} of {images}, another restart 1 of {images}; the gain" in alarm(first, 1).reason


def test_the_docstring_of_convergence_states_the_right_counts():
    for least, images in ((6, 512), (16, 2000)):
        assert alarms.converged([("twice the steps", least, images)]).status == "alarm"
        assert alarms.converged([("twice the steps", least - 1, images)]).status == "pass"


class TestEpsCurve:
    def curve(self, *survivors: int, gained: int = 0) -> list[CurvePoint]:
        before = [256, *survivors]
        return [
            CurvePoint(eps, count, max(previous - count, 0) + gained, max(count - previous, 0) + gained)
            for eps, count, previous in zip([6.0, 12.0, 25.0, 50.0, 128.0], survivors, before, strict=False)
        ]

    def test_a_falling_curve_that_ends_at_nothing_passes(self):
        assert alarms.eps_curve(self.curve(200, 150, 90, 10, 0), 256, 30).status == "pass"

    def test_a_curve_that_stays_above_chance_is_masked(self):
        alarm = alarms.eps_curve(self.curve(200, 198, 197, 197, 196), 256, 30)
        assert alarm.status == "alarm"
        assert alarm.reason == "196 of 256 survive eps 128/255, where at most 30 should"

    def test_a_few_more_than_the_largest_class_are_noise(self):
        assert alarms.eps_curve(self.curve(200, 150, 90, 50, 36), 256, 30).status == "pass"
        assert alarms.eps_curve(self.curve(200, 150, 90, 60, 44), 256, 30).status == "alarm"

    def test_a_rise_that_is_more_than_noise_raises_it(self):
        assert alarms.eps_curve(self.curve(200, 150, 152, 10, 0, gained=2), 256, 30).status == "pass"
        alarm = alarms.eps_curve(self.curve(200, 150, 165, 10, 0), 256, 30)
        assert alarm.status == "alarm"
        assert "rises from 150 to 165 of 256 between eps 12 and 25/255" in alarm.reason

    def test_no_images(self):
        assert alarms.eps_curve([], 0, 0).status == "not_run"


def test_documents_have_the_five_fields_of_a_result():
    assert alarms.determinism(1, 64).to_document() == {
        "name": "determinism",
        "status": "alarm",
        "value": 1.0,
        "threshold": 0,
        "reason": "1 of 64 labels changed between three runs, or between batch 1 and a larger one",
    }
