"""Further attacks in a whole evaluation: given what stands, resumed, counted; and the control without an adversary."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bundle_examples import build_bundle
from hardbit_deploy.attack_specs import KINDS, parse_attack
from hardbit_deploy.attacks import ThreatModel, keeps_label
from hardbit_deploy.attacks.apgd import apgd
from hardbit_deploy.attacks.corruptions import corrupt
from hardbit_deploy.attacks.objectives import OBJECTIVES
from hardbit_deploy.engines import Target, open_target
from hardbit_deploy.engines.averaged import DRAWS, AveragedGradient, averaged
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.evaluate import evaluate
from hardbit_deploy.further_attacks import Surface, run_attack
from hardbit_deploy.suite import SURROGATES, Suite
from hardbit_deploy.victims import Victims
from linear_examples import LinearEngine, LinearGradient, linear_target

SHAPE = (1, 12, 12)
ATTACKS = ("pgd-10 tempered", "apgd-12x2 cross_entropy", "apgd-6 targeted-4", "spsa-3", "random-20", "hopskipjump-60")
SUITE = Suite(
    "custom", steps=2, restarts=1, losses=("cross_entropy",), square_queries=40, attacks=ATTACKS, corruption_images=25
)
SPECS = {
    "apgd": "apgd-8 cross_entropy",
    "pgd": "pgd-8 tempered",
    "fab": "fab-8 targeted-3",
    "carlini_wagner": "carlini_wagner-8",
    "deepfool": "deepfool-8",
    "spsa": "spsa-4",
    "nes": "nes-4",
    "random": "random-30",
    "hopskipjump": "hopskipjump-200",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("further") / "b"
    return build_bundle(path, count=40, threat_model={"norm": "linf", "eps_255": 2}, with_smooth=True)


@pytest.fixture(scope="module")
def evaluation(bundle):
    return evaluate(bundle, SUITE, workers=1)


def test_each_is_given_what_stands_and_says_how_much_fell(evaluation):
    rows = {row["name"]: row for row in evaluation.attacks}
    assert list(rows)[-len(ATTACKS) - 1 :] == [*ATTACKS, "worst_case"]
    everywhere = ("fgsm", "pgd-2_cross_entropy", "square-40")
    standing = np.all([evaluation.records[f"survived/{name}"] for name in everywhere], axis=0)
    assert 0 < standing.sum() < 40
    for name in ATTACKS:
        after = evaluation.records[f"survived/{name.replace(' ', '_')}"]
        assert not (after & ~standing).any()
        assert (rows[name]["attacked"], rows[name]["fell"]) == (standing.sum(), (standing & ~after).sum())
        assert rows[name]["survivors"] == after.sum()
        standing = after
    np.testing.assert_array_equal(evaluation.records["worst_case"], standing)
    assert sum(rows[name]["fell"] for name in ATTACKS) > 0
    assert "attacked" not in rows["pgd-2 cross_entropy"]
    assert rows["apgd-6 targeted-4"]["settings"]["targets"] == 4


def test_rows_of_the_other_attacks_are_as_without_them(evaluation, bundle):
    alone = evaluate(bundle, replace(SUITE, attacks=()), workers=1)
    for name in ("clean", "survived/fgsm", "survived/pgd-2_cross_entropy", "survived/square-40"):
        np.testing.assert_array_equal(alone.records[name], evaluation.records[name])
    assert [row["name"] for row in alone.attacks[:4]] == [row["name"] for row in evaluation.attacks[:4]]


def test_what_they_find_is_in_the_ball_and_known_to_the_engine(evaluation):
    (alarm,) = [alarm for alarm in evaluation.alarms if alarm["name"] == "feasible"]
    assert alarm["status"] == "pass"


def test_results_depend_neither_on_chunks_nor_on_workers_nor_on_a_kill(evaluation, bundle, tmp_path):
    evaluate(bundle, replace(SUITE, chunk=16), workers=2, limit=16, work_dir=tmp_path)
    resumed = evaluate(bundle, replace(SUITE, chunk=16), workers=2, work_dir=tmp_path)
    assert resumed.resumed_images == 16
    for name, record in evaluation.records.items():
        np.testing.assert_array_equal(record, resumed.records[name], err_msg=name)
    assert resumed.corruptions == evaluation.corruptions
    other = evaluate(bundle, replace(SUITE, chunk=16, attacks=ATTACKS[:1]), workers=1, work_dir=tmp_path)
    assert other.resumed_images == 0


def test_corruptions_are_counted_on_the_first_images(evaluation, bundle):
    assert len(evaluation.corruptions) == 20
    entry = evaluation.corruptions[7]
    assert (entry["kind"], entry["severity"], entry["images"]) == ("blur", 3, 25)
    images, labels = np.array(bundle.images[:25]), np.array(bundle.labels[:25])
    with open_target(bundle) as target:
        logits = target.engine.infer(corrupt(images, "blur", 3, 0, np.arange(25)))
    assert entry["survivors"] == keeps_label(logits, labels).sum()
    assert "corruptions" in evaluation.to_document()
    assert "corruptions" not in evaluate(bundle, replace(SUITE, attacks=(), corruption_images=0)).to_document()


def test_progress_names_them_and_ends_at_its_total(bundle):
    seen = []
    evaluate(bundle, SUITE, workers=1, progress=lambda what, done, total: seen.append((what, done, total)))
    assert {*ATTACKS, "corruptions", "noise"} <= {what for what, _, _ in seen}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert len({total for _, _, total in seen}) == 1
    assert seen[-1][1] == seen[-1][2]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_runs_and_beats_random_points(kind, norm):
    """On a linear classifier, where PGD is optimal: what a kind finds, PGD could have found."""
    spec = parse_attack(SPECS[kind])
    if norm not in KINDS[kind].norms:
        with pytest.raises(HardbitError):
            spec.refuse_other_norm(norm)
        return
    target = linear_target()
    bundle_images = np.random.default_rng(1).integers(0, 256, (24, *SHAPE)).astype(np.uint8)
    labels = target.engine.infer(bundle_images).argmax(axis=1)
    model = ThreatModel(norm, 6.0 if norm == "linf" else 90.0)
    surface = Surface(target.engine, {"straight-through": target.gradient}, model)
    victims = Victims(bundle_images, labels, np.arange(24))
    told = []
    outcome = run_attack(spec, surface, victims, lambda steps, queries: told.append(steps + queries))
    assert np.count_nonzero(~outcome.survived) > 0
    np.testing.assert_array_equal(keeps_label(target.engine.infer(outcome.adversarial), labels), outcome.survived)
    assert sum(told) > 0


def test_a_spec_is_the_attack_that_it_names(bundle):
    images, labels = np.array(bundle.images), np.array(bundle.labels)
    with open_target(bundle) as target:
        surface = Surface(target.engine, {"straight-through": target.gradient}, bundle.manifest.threat_model, seed=3)
        found = run_attack(parse_attack("apgd-9x2 dlr"), surface, Victims(images, labels, np.arange(40)))
        direct = apgd(
            target.engine,
            target.gradient,
            images,
            labels,
            bundle.manifest.threat_model,
            steps=9,
            restarts=2,
            objective=OBJECTIVES["dlr"],
            seed=3,
        )
    np.testing.assert_array_equal(found.survived, direct.survived)
    np.testing.assert_array_equal(found.adversarial[~found.survived], direct.adversarial[~direct.survived])


def test_both_surrogates_are_gone_through_where_the_suite_has_both(bundle):
    suite = replace(SUITE, attacks=("apgd-6 cross_entropy",), surrogates=SURROGATES)
    row = evaluate(bundle, suite, workers=1).attacks[-2]
    assert row["settings"]["surrogates"] == list(SURROGATES)
    images, labels = np.array(bundle.images), np.array(bundle.labels)
    with open_target(bundle) as target:
        surface = Surface(
            target.engine,
            {"straight-through": target.gradient, "smooth": target.smooth},
            bundle.manifest.threat_model,
        )
        both = run_attack(parse_attack("apgd-2 cross_entropy"), surface, Victims(images, labels, np.arange(40)))
        alone = [
            run_attack(
                parse_attack("apgd-2 cross_entropy"),
                replace(surface, gradients={name: surface.gradients[name]}),
                Victims(images, labels, np.arange(40)),
            ).survived
            for name in SURROGATES
        ]
    np.testing.assert_array_equal(both.survived, alone[0] & alone[1])


def test_an_attack_of_another_norm_is_refused_before_any_work(bundle):
    with pytest.raises(HardbitError, match="an attack in l2, the threat model is linf"):
        evaluate(bundle, replace(SUITE, attacks=("carlini_wagner-9",)))


class TestAveragedGradients:
    def rolling(self):
        weights = np.random.default_rng(0).normal(size=(10, 144)).astype(np.float32)

        class Dice(LinearEngine):
            dice = np.random.default_rng(1)

            def infer_impl(self, images):
                return super().infer_impl(images) + self.dice.normal(scale=3, size=(len(images), 10)).astype(np.float32)

        return Target(Dice(weights, SHAPE), LinearGradient(weights, SHAPE)).activate()

    def test_they_are_means_over_draws_of_the_engine(self):
        target = self.rolling()
        images = np.random.default_rng(2).integers(0, 256, (6, *SHAPE)).astype(np.uint8)
        labels, logits = np.zeros(6, np.int64), target.engine.infer(images)
        gradient = averaged(target).gradient
        assert isinstance(gradient, AveragedGradient)
        before = len(target.engine.seen)
        mean = gradient.gradient(images, labels, logits, "margin")
        assert len(target.engine.seen) - before == DRAWS - 1
        single = [target.gradient.gradient(images, labels, target.engine.infer(images), "margin") for _ in range(2000)]
        truth, spread = np.mean(single, axis=0), np.std(single, axis=0)
        error = np.abs(mean - truth) / np.maximum(spread, 1e-9)
        assert np.median(error) < 2 / np.sqrt(DRAWS)

    def test_only_an_engine_that_rolls_dice_is_attacked_along_them(self, bundle):
        quiet = replace(SUITE, attacks=(), square_queries=0, corruption_images=0)
        with open_target(bundle):
            said = {a["name"]: a["reason"] for a in evaluate(bundle, quiet, workers=1).alarms}
        assert "means of" not in said["determinism"]
        target = self.rolling()
        said = {a["name"]: a for a in evaluate(bundle, quiet, workers=1, open_target=lambda _: target).alarms}
        assert said["determinism"]["status"] == "alarm"
        assert f"means of {DRAWS} draws" in said["determinism"]["reason"]
