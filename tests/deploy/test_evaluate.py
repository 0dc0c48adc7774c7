"""Whole evaluations: what they report, and that they go on after a kill."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import canonical_examples
from bundle_examples import build_bundle, manifest_fields, smooth_images
from hardbit_deploy import chunk_attacks
from hardbit_deploy.attacks import pgd
from hardbit_deploy.bundle import write_bundle
from hardbit_deploy.engines import Target, open_target
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.evaluate import Evaluation, evaluate
from hardbit_deploy.network_bits import NetworkBits
from hardbit_deploy.statistics import wilson_interval
from hardbit_deploy.suite import SUITES, SURROGATES, Suite, named_suite, suite_from_document
from linear_examples import LinearEngine, LinearGradient, linear_target

SHAPE = (1, 12, 12)
CUSTOM = {"name": "custom", "steps": 1, "restarts": 1, "losses": ["margin"]}
SUITE = Suite("custom", steps=5, restarts=2, losses=("cross_entropy", "margin"), chunk=16)
EVERY_ALARM = [
    "parity",
    "determinism",
    "logits",
    "gradients",
    "iterative_beats_one_step",
    "surrogates",
    "white_box_beats_black_box",
    "white_box_beats_transfer",
    "noise_does_not_win",
    "losses",
    "eps_curve",
    "feasible",
    "converged",
    "stronger_attacks",
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return build_bundle(
        tmp_path_factory.mktemp("real") / "bundle", count=60, threat_model={"norm": "linf", "eps_255": 2}
    )


def same(one: Evaluation, other: Evaluation) -> None:
    def without_seconds(evaluation: Evaluation):
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in evaluation.attacks]
        suite = {key: value for key, value in evaluation.suite.items() if key != "chunk"}
        return evaluation.to_document() | {"attacks": rows, "suite": suite}

    assert without_seconds(one) == without_seconds(other)
    for name in one.records:
        np.testing.assert_array_equal(one.records[name], other.records[name], err_msg=name)


class TestWhatIsReported:
    @pytest.fixture(scope="class")
    def evaluation(self, bundle):
        return evaluate(bundle, SUITE, workers=1)

    def test_rows_count_their_records(self, evaluation):
        names = ["clean", "fgsm", "pgd-5 cross_entropy", "pgd-5 margin", "worst_case"]
        assert [row["name"] for row in evaluation.attacks] == names
        for row in evaluation.attacks:
            record = row["name"].replace(" ", "_")
            record = record if record in ("clean", "worst_case") else f"survived/{record}"
            survivors = int(evaluation.records[record].sum())
            assert (row["images"], row["survivors"], row["rate"]) == (60, survivors, survivors / 60)
            assert row["interval"] == list(wilson_interval(survivors, 60))
            assert row["seconds"] >= 0
        assert 0 < evaluation.attacks[-1]["survivors"] < 60

    def test_the_worst_case_is_the_and_of_all_attacks_image_by_image(self, evaluation):
        records = evaluation.records
        attacks = [value for name, value in records.items() if name.startswith("survived/")]
        assert len(attacks) == 3
        np.testing.assert_array_equal(records["worst_case"], records["clean"] & np.all(attacks, axis=0))
        np.testing.assert_array_equal(records["index"], np.arange(60))

    def test_each_row_is_that_attack_alone(self, evaluation, bundle):
        with open_target(bundle) as target:
            outcome = pgd(
                target.engine,
                target.gradient,
                np.array(bundle.images),
                np.array(bundle.labels),
                bundle.manifest.threat_model,
                steps=5,
                restarts=2,
                loss="margin",
            )
        np.testing.assert_array_equal(evaluation.records["survived/pgd-5_margin"], outcome.survived)

    def test_agreement_of_an_exact_engine_is_complete(self, evaluation):
        rows = {row["name"]: row for row in evaluation.agreement}
        assert list(rows) == ["twin_clean", "twin_adversarial", "attack_graph_clean", "attack_graph_adversarial"]
        for row in rows.values():
            assert (row["images"], row["label_flips"], row["max_logit_difference"]) == (60, 0, 0.0)
            assert row["flips_upper_bound"] == pytest.approx(1 - 0.05 ** (1 / 60))  # exact bound of nothing in 60

    def test_all_alarms_are_there_and_quiet(self, evaluation):
        assert [alarm["name"] for alarm in evaluation.alarms] == EVERY_ALARM
        assert {alarm["name"]: alarm["reason"] for alarm in evaluation.alarms if alarm["status"] != "pass"} == {
            "surrogates": "only the gradient through the straight-through surrogate was used",
            "white_box_beats_black_box": "Square was not run",
            "white_box_beats_transfer": "the bundle holds no images of other networks",
            "stronger_attacks": "no further attack was run",
        }

    def test_the_eps_curve_falls_to_uniform_grey(self, evaluation):
        assert [point["eps_255"] for point in evaluation.eps_curve] == [0.5, 1.0, 2.0, 4.0, 8.0, 128.0]
        survivors = [point["survivors"] for point in evaluation.eps_curve]
        assert survivors[0] == 60  # less than one grey level is nothing
        assert survivors == sorted(survivors, reverse=True)

    def test_examples_show_fooled_images_first_and_are_what_the_engine_saw(self, evaluation, bundle):
        examples = evaluation.examples
        assert len(examples["label"]) == 12
        fooled = examples["adversarial_prediction"] != examples["label"]
        assert list(fooled) == sorted(fooled, reverse=True)
        assert fooled.any()
        with open_target(bundle) as target:
            for kind in ("clean", "adversarial"):
                predicted = target.engine.infer(examples[kind]).argmax(axis=1)
                np.testing.assert_array_equal(predicted, examples[f"{kind}_prediction"])
        assert set(examples["attack"]) <= {"fgsm", "pgd-5 cross_entropy", "pgd-5 margin"}
        assert examples["attack"].dtype.kind == "U"

    def test_it_is_json(self, evaluation):
        document = json.loads(json.dumps(evaluation.to_document(), allow_nan=False))
        assert document["suite"]["images"] == 60
        assert document["threat_model"] == {"norm": "linf", "eps_255": 2.0}

    def test_l2_is_evaluated_alike(self, tmp_path):
        bundle = build_bundle(tmp_path / "l2", count=20, threat_model={"norm": "l2", "eps_255": 20.0})
        evaluation = evaluate(bundle, replace(SUITE, square_queries=100), workers=1)
        assert evaluation.attacks[-2]["name"] == "square-100"
        assert "alarm" not in [alarm["status"] for alarm in evaluation.alarms]
        assert evaluation.eps_curve[-1]["eps_255"] == 128.0 * 12
        assert 0 < evaluation.attacks[-1]["survivors"] < 20

    def test_a_bundle_without_twin_is_compared_with_its_attack_graph(self, tmp_path):
        bundle = build_bundle(tmp_path / "b", count=4, with_twin=False)
        names = [row["name"] for row in evaluate(bundle, SUITE, workers=1).agreement]
        assert names == ["attack_graph_clean", "attack_graph_adversarial"]


class TestIndependence:
    def test_of_the_number_of_workers_and_of_the_chunk(self, bundle):
        alone = evaluate(bundle, SUITE, workers=1)
        same(alone, evaluate(bundle, SUITE, workers=3))
        same(alone, evaluate(bundle, replace(SUITE, chunk=7), workers=2))

    def test_a_limit_gives_the_start_of_the_whole(self, bundle):
        whole, part = evaluate(bundle, SUITE, workers=1), evaluate(bundle, SUITE, workers=1, limit=20)
        for name, values in part.records.items():
            np.testing.assert_array_equal(values, whole.records[name][:20])
        assert part.suite["images"] == 20

    def test_the_seed_changes_the_attack(self, bundle):
        one, other = (evaluate(bundle, replace(SUITE, seed=seed), workers=1) for seed in (0, 1))
        assert any(
            not np.array_equal(one.examples[name], other.examples[name]) for name in ("adversarial", "attack")
        ) or not np.array_equal(one.records["worst_case"], other.records["worst_case"])

    def test_progress_rises_to_its_total_in_the_calling_thread(self, bundle):
        seen = []
        evaluate(bundle, SUITE, workers=2, progress=lambda what, done, total: seen.append((what, done, total)))
        assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
        assert seen[-1][1] == seen[-1][2]
        assert {"clean", "pgd-5 margin", "convergence"} <= {what for what, _, _ in seen}


class TestGoingOn:
    """A kill is an exception out of the progress callback: nothing is tidied up that a kill would not leave."""

    def interrupted(self, bundle, folder, after: int) -> None:
        def stop(what: str, done: int, total: int) -> None:
            if len(list(folder.rglob("*.sha256"))) >= after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate(bundle, SUITE, progress=stop, work_dir=folder, workers=1)

    def test_an_interrupted_evaluation_goes_on_where_it_was(self, bundle, tmp_path):
        self.interrupted(bundle, tmp_path, after=2)
        resumed = evaluate(bundle, SUITE, work_dir=tmp_path, workers=2)
        assert 32 <= resumed.resumed_images < 60
        same(resumed, evaluate(bundle, SUITE, workers=1))
        assert evaluate(bundle, SUITE, work_dir=tmp_path).resumed_images == 60

    @pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "foreign"])
    def test_damaged_chunks_are_measured_again(self, bundle, tmp_path, damage):
        complete = evaluate(bundle, SUITE, work_dir=tmp_path, workers=1)
        files = sorted(tmp_path.rglob("*.sha256"))
        assert len(files) == 4
        content = files[0].read_bytes()
        if damage == "foreign":
            other = evaluate(bundle, replace(SUITE, seed=9), work_dir=tmp_path / "other", workers=1)
            assert other.resumed_images == 0
            content = sorted((tmp_path / "other").rglob("*.sha256"))[0].read_bytes()
        elif damage == "flip":
            content = content[:500] + bytes([content[500] ^ 1]) + content[501:]
        else:
            content = content[: len(content) // 2 if damage == "truncate" else 0]
        files[0].write_bytes(content)
        again = evaluate(bundle, SUITE, work_dir=tmp_path, workers=1)
        assert again.resumed_images == 44
        same(again, complete)

    def test_other_settings_do_not_reuse_chunks(self, bundle, tmp_path):
        evaluate(bundle, SUITE, work_dir=tmp_path, workers=1, limit=16)
        assert evaluate(bundle, SUITE, work_dir=tmp_path, workers=1, limit=32).resumed_images == 16
        assert evaluate(bundle, replace(SUITE, steps=4), work_dir=tmp_path, limit=16).resumed_images == 0

    def test_a_failing_chunk_ends_the_evaluation_with_its_own_error(self, bundle):
        class Failing(LinearEngine):
            def infer_impl(self, images):
                if len(self.seen) > 20:
                    raise OSError("the board is gone")
                return super().infer_impl(images)

        def failing(_):
            base = linear_target()
            return Target(Failing(base.engine.weights, SHAPE), base.gradient).activate()

        with pytest.raises(OSError, match="the board is gone"):
            evaluate(bundle, SUITE, workers=2, open_target=failing)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """More images cost their records, and less than half of their pixels: no pixel of theirs is kept."""
    images = np.random.default_rng(0).integers(0, 256, (2000, 1, 32, 32)).astype(np.uint8)
    weights = np.random.default_rng(1).normal(size=(10, 1024)).astype(np.float32)
    fields = manifest_fields(canonical_examples.plain_cnn(), images)
    del fields["twin"]
    graphs = dict.fromkeys(("engine.onnx", "canonical.onnx", "attack.onnx"), b"not opened")
    labels = LinearEngine(weights, (1, 32, 32)).activate().infer(images).argmax(axis=1)
    bundle = write_bundle(tmp_path / "b", fields, {**graphs, "images.npy": images, "labels.npy": labels})

    class Forgetful(LinearEngine):
        def infer_impl(self, images):
            self.seen.clear()
            return super().infer_impl(images)

    def opened(_):
        return Target(Forgetful(weights, (1, 32, 32)), LinearGradient(weights, (1, 32, 32))).activate()

    suite = replace(SUITE, chunk=50, steps=2, restarts=1, convergence_images=100, curve_images=100)
    evaluate(bundle, suite, workers=1, limit=50, open_target=opened)
    peaks = []
    for limit in (250, 2000):
        tracemalloc.start()
        evaluate(bundle, suite, workers=1, limit=limit, open_target=opened)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < (2000 - 250) * 1024 / 2


class TestRefusals:
    def test_settings_that_do_not_fit(self, bundle):
        with pytest.raises(HardbitError, match="0 workers"):
            evaluate(bundle, SUITE, workers=0)
        with pytest.raises(HardbitError, match="limit of 0 images"):
            evaluate(bundle, SUITE, limit=0)

    def test_a_loss_that_the_attack_graph_lacks(self, tmp_path):
        bundle = build_bundle(tmp_path / "b", count=2, attack={"file": "attack.onnx", "losses": ["cross_entropy"]})
        with pytest.raises(HardbitError, match="has no loss 'margin'; it has cross_entropy"):
            evaluate(bundle, SUITE)


class TestSuites:
    def test_names_mean_their_settings(self):
        assert named_suite("standard").white_box_names == ("fgsm", "pgd-20 cross_entropy", "pgd-20 margin")
        assert (named_suite("standard").square_name, named_suite("quick").square_name) == ("square-500", None)
        assert named_suite("standard", seed=4).name == "standard"
        assert named_suite("standard", steps=40).name == "custom"
        assert suite_from_document(json.loads(json.dumps(SUITES["standard"].to_document()))) == SUITES["standard"]

    @pytest.mark.parametrize(
        ("document", "expected"),
        [
            ({"name": "quick"}, "key 'steps' is missing"),
            ({"name": "fast", "steps": 1, "restarts": 1, "losses": ["margin"]}, "suite 'fast' is not known"),
            ({"name": "quick", "steps": 1, "restarts": 1, "losses": ["margin"]}, "not those of quick"),
            ({"name": "custom", "steps": 1, "restarts": 1, "losses": []}, "suite.losses"),
            ({**CUSTOM, "surrogates": ["smooth"]}, "suite.surrogates"),
            ({**CUSTOM, "surrogates": ["smooth", "straight-through"]}, "suite.surrogates"),
            ({**CUSTOM, "square_queries": -1}, "square_queries is -1"),
            (
                {
                    **CUSTOM,
                    "name": "standard",
                    "losses": ["cross_entropy", "margin"],
                    "steps": 20,
                    "restarts": 3,
                    "square_queries": 100,
                },
                "not those of standard",
            ),
            ({"name": "custom", "steps": 1.5, "restarts": 1, "losses": ["margin"]}, "steps is 1.5"),
            ({"name": "custom", "steps": 1, "restarts": 1, "losses": ["margin"], "speed": 9}, "'speed' is not known"),
        ],
    )
    def test_others_are_refused(self, document, expected):
        with pytest.raises(HardbitError) as caught:
            suite_from_document(document)
        assert expected in str(caught.value)


class TestFewBits:
    """Names mean more where few bits mask gradients, and a bundle says what it can."""

    def test_named_suites_are_strengthened(self):
        for name, queries in (("quick", 0), ("standard", 500)):
            plain = named_suite(name)
            assert named_suite(name, NetworkBits(4, 4)) == plain
            assert named_suite(name, NetworkBits(32, 32, 32, 32)) == plain
            weights, activations = named_suite(name, NetworkBits(2, 4)), named_suite(name, NetworkBits(8, 3))
            assert weights == replace(plain, surrogates=SURROGATES)
            assert (weights.name, weights.square_queries) == (name, queries)
            assert activations == replace(plain, surrogates=SURROGATES, square_queries=500)
            assert named_suite(name, NetworkBits(8, 8, layers={"conv2": 1})) == activations
            assert named_suite(name, NetworkBits(2, 2), square_queries=0).name == "custom"

    def test_a_manifest_that_says_nothing_of_it_means_what_its_name_means(self):
        document = {"name": "quick", "steps": 10, "restarts": 1, "losses": ["cross_entropy"], "seed": 3}
        assert suite_from_document(document, NetworkBits(1, 1)) == named_suite("quick", NetworkBits(1, 1), seed=3)
        assert suite_from_document({**document, "name": "custom"}, NetworkBits(1, 1)).square_queries == 0

    def test_both_surrogates_are_climbed_and_compared(self, tmp_path):
        network = {**example_network(), "bits": {"weights": 2, "activations": 4}}
        bundle = build_bundle(tmp_path / "b", count=40, with_smooth=True, network=network)
        assert bundle.manifest.suite == named_suite("quick", NetworkBits(2, 4))
        evaluation = evaluate(bundle, replace(SUITE, surrogates=SURROGATES), workers=1)
        names = [row["name"] for row in evaluation.attacks]
        climbs = ["pgd-5 cross_entropy", "pgd-5 margin", "pgd-5 cross_entropy smooth", "pgd-5 margin smooth"]
        assert names == ["clean", "fgsm", *climbs, "worst_case"]
        with open_target(bundle) as target:
            assert target.smooth is not None
            outcome = pgd(
                target.engine,
                target.smooth,
                np.array(bundle.images),
                np.array(bundle.labels),
                bundle.manifest.threat_model,
                steps=5,
                restarts=2,
                loss="margin",
                surrogate="smooth",
            )
        np.testing.assert_array_equal(evaluation.records["survived/pgd-5_margin_smooth"], outcome.survived)
        survived = {name: evaluation.records[f"survived/{name.replace(' ', '_')}"] for name in ("fgsm", *climbs)}
        straight = np.all([survived[name] for name in ("fgsm", *climbs[:2])], axis=0)
        smooth = np.all([survived[name] for name in climbs[2:]], axis=0)
        (alarm,) = [alarm for alarm in evaluation.alarms if alarm["name"] == "surrogates"]
        assert alarm["status"] == "pass"
        assert f"{(straight & ~smooth).sum()} through the smooth one alone" in alarm["reason"]
        settings = {row["name"]: row["settings"] for row in evaluation.attacks}
        assert settings[climbs[0]]["surrogate"] == "straight-through"
        assert settings[climbs[3]]["step_logits"] == "engine"

    def test_an_earlier_bundle_without_a_smooth_graph_is_attacked_by_the_rest_and_doubted(self, tmp_path):
        network = {**example_network(), "bits": {"weights": 2, "activations": 4}}
        bundle = build_bundle(tmp_path / "b", count=20, network=network)
        evaluation = evaluate(bundle, workers=1)
        assert evaluation.suite["surrogates"] == ["straight-through"]
        assert evaluation.suite["name"] == "custom"
        raised = {alarm["name"]: alarm["reason"] for alarm in evaluation.alarms if alarm["status"] == "alarm"}
        assert raised["surrogates"].endswith("the network has layers of 2 bits")

    def test_few_bits_of_activations_without_square_are_doubted(self, tmp_path):
        network = {**example_network(), "bits": {"weights": 8, "activations": 3}}
        bundle = build_bundle(tmp_path / "b", count=20, with_smooth=True, network=network)
        evaluation = evaluate(bundle, replace(SUITE, surrogates=SURROGATES), workers=1)
        raised = {alarm["name"]: alarm["reason"] for alarm in evaluation.alarms if alarm["status"] == "alarm"}
        assert "3-bit activations" in raised["white_box_beats_black_box"]


class TestTransfer:
    """Images of other networks, which lie in the bundle."""

    def bundle(self, tmp_path, move):
        """Two candidates an image: the second is the image moved by `move`, the first is the image itself."""
        images = smooth_images(40, SHAPE)
        made = np.clip(images.astype(int) + move, 0, 255).astype(np.uint8)
        candidates = np.stack([images, made], axis=1)
        return build_bundle(
            tmp_path / "b", count=40, transfers={"other-net": candidates}, threat_model={"norm": "linf", "eps_255": 3}
        )

    def test_the_engine_judges_every_candidate(self, tmp_path):
        move = np.random.default_rng(0).choice([-3, 3], (40, *SHAPE))
        bundle = self.bundle(tmp_path, move)
        evaluation = evaluate(bundle, SUITE, workers=1)
        with open_target(bundle) as target:
            said = target.engine.infer(np.array(bundle.transfers["other-net"][:, 1])).argmax(axis=1)
        survived = evaluation.records["survived/transfer_other-net"]
        np.testing.assert_array_equal(survived, said == bundle.labels)
        assert 0 < survived.sum() < 40
        rows = {row["name"]: row for row in evaluation.attacks}
        assert list(rows)[-2:] == ["transfer other-net", "worst_case"]
        assert rows["transfer other-net"]["survivors"] == survived.sum()
        assert not (evaluation.records["worst_case"] & ~survived).any()
        statuses = {alarm["name"]: alarm["status"] for alarm in evaluation.alarms}
        assert statuses["feasible"] == "pass"
        assert statuses["white_box_beats_transfer"] == "pass"

    def test_what_leaves_the_ball_is_not_judged_and_is_an_alarm(self, tmp_path):
        move = np.zeros((40, *SHAPE), int)
        move[:7] = np.random.default_rng(0).choice([-90, 90], SHAPE)
        evaluation = evaluate(self.bundle(tmp_path, move), SUITE, workers=1)
        assert evaluation.records["survived/transfer_other-net"].all()
        (alarm,) = [alarm for alarm in evaluation.alarms if alarm["name"] == "feasible"]
        assert alarm["status"] == "alarm"
        assert alarm["reason"].startswith("7 of 40 adversarial images leave the eps ball")

    def test_images_that_no_gradient_finds_are_an_alarm(self, tmp_path):
        """An engine that gives way on the very images of the other network, and nowhere else."""
        move = np.full((40, *SHAPE), 3)
        bundle = self.bundle(tmp_path, move)
        weights = np.random.default_rng(0).normal(size=(10, 144)).astype(np.float32)
        secret = {image.tobytes() for image in bundle.transfers["other-net"][:9, 1]}

        class Trapdoor(LinearEngine):
            def infer_impl(self, images):
                logits = np.eye(10, dtype=np.float32)[np.zeros(len(images), int)] * 9
                logits[[image.tobytes() in secret for image in images], 1] = 99
                return logits

        labels = np.zeros(40, np.int64)
        fields = {name: bundle.path / name for name in bundle.manifest.files} | {"labels.npy": labels}
        document = {k: v for k, v in bundle.manifest.document.items() if k not in ("format", "schema_version", "files")}
        bundle = write_bundle(tmp_path / "again", document, fields)
        target = Target(Trapdoor(weights, SHAPE), LinearGradient(weights, SHAPE)).activate()
        evaluation = evaluate(bundle, SUITE, workers=1, open_target=lambda _: target)
        (alarm,) = [alarm for alarm in evaluation.alarms if alarm["name"] == "white_box_beats_transfer"]
        assert (alarm["status"], alarm["value"]) == ("alarm", 9 / 40)
        assert "(other-net 9)" in alarm["reason"]

    def test_results_do_not_depend_on_chunks_and_go_on_after_a_kill(self, tmp_path):
        bundle = self.bundle(tmp_path, np.random.default_rng(0).choice([-3, 3], (40, *SHAPE)))
        suite = replace(SUITE, square_queries=150)
        alone = evaluate(bundle, suite, workers=1)
        same(alone, evaluate(bundle, replace(suite, chunk=7), workers=2))
        evaluate(bundle, suite, workers=1, limit=16, work_dir=tmp_path / "work")
        resumed = evaluate(bundle, suite, workers=1, work_dir=tmp_path / "work")
        assert resumed.resumed_images == 16
        same(alone, resumed)


def example_network():
    """The section `network` of an example's manifest."""
    return manifest_fields(canonical_examples.plain_cnn(), smooth_images(2, SHAPE))["network"]


class TestOneRunForTwo:
    """The attack graph's logits stand for the engine's only where they were seen to be the same, chunk by chunk."""

    def test_counts_are_those_of_two_runs_and_the_result_says_which_it_was(self, tmp_path, monkeypatch):
        bundle = build_bundle(tmp_path / "b", count=60)
        fast = evaluate(bundle, SUITE, workers=1)
        monkeypatch.setattr(chunk_attacks, "pgd", lambda *args, same_bits, **settings: pgd(*args, **settings))
        slow = evaluate(bundle, SUITE, workers=1)
        assert fast.records["same_bits"].all()
        for name, record in slow.records.items():
            np.testing.assert_array_equal(record, fast.records[name], err_msg=name)
        assert "bit-equal" in fast.attacks[2]["settings"]["step_logits"]

    def test_an_engine_that_differs_only_off_the_known_images_is_attacked_through_itself(self, tmp_path, monkeypatch):
        """Bit-equal on every image of the bundle, and on none that an attacker makes of them."""
        weights = np.random.default_rng(0).normal(size=(10, 144)).astype(np.float32)
        images = smooth_images(60, SHAPE)
        known = {image.tobytes() for image in images}

        class TwoFaced(LinearEngine):
            def infer_impl(self, images):
                logits = super().infer_impl(images)
                made = np.array([image.tobytes() not in known for image in images])
                logits[made] += np.sin(images[made].reshape(-1, 144)[:, :10].astype(np.float32))
                return logits

        labels = LinearEngine(weights, SHAPE).activate().infer(images).argmax(axis=1)
        bundle = build_bundle(tmp_path / "b", count=60, labels=labels, with_twin=False)

        def opened(_):
            return Target(TwoFaced(weights, SHAPE), LinearGradient(weights, SHAPE)).activate()

        found = evaluate(bundle, SUITE, workers=1, open_target=opened)
        monkeypatch.setattr(chunk_attacks, "pgd", lambda *args, same_bits=False, **settings: pgd(*args, **settings))
        honest = evaluate(bundle, SUITE, workers=1, open_target=opened)
        assert not found.records["same_bits"].any()
        assert 0 < honest.records["worst_case"].sum() < 60
        for name, record in honest.records.items():
            if name != "same_bits":
                np.testing.assert_array_equal(record, found.records[name], err_msg=name)

    def test_one_bit_off_and_every_step_asks_the_engine(self, tmp_path):
        class Shifted(LinearEngine):
            def infer_impl(self, images):
                return np.nextafter(super().infer_impl(images), np.float32(np.inf))

        weights = np.random.default_rng(0).normal(size=(10, 144))
        bundle = build_bundle(tmp_path / "b", count=40, with_twin=False)
        target = Target(Shifted(weights, SHAPE), LinearGradient(weights, SHAPE))
        evaluation = evaluate(bundle, SUITE, workers=1, open_target=lambda _: target.activate())
        assert not evaluation.records["same_bits"].any()
        assert evaluation.attacks[2]["settings"]["step_logits"] == "engine"
