"""Further attacks as they are written, and suites that name them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardbit_deploy.attack_specs import KINDS, AttackSpec, parse_attack
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.network_bits import NetworkBits
from hardbit_deploy.suite import SUITES, SURROGATES, Suite, named_suite, suite_from_document


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("apgd-100 cross_entropy", AttackSpec("apgd-100 cross_entropy", "apgd", 100, objective="cross_entropy")),
        ("apgd-100x3 dlr", AttackSpec("apgd-100x3 dlr", "apgd", 100, 3, "dlr")),
        ("apgd-100 targeted-9", AttackSpec("apgd-100 targeted-9", "apgd", 100, objective="dlr", targets=9)),
        ("pgd-100 tempered", AttackSpec("pgd-100 tempered", "pgd", 100, objective="tempered")),
        ("fab-50x2 targeted-3", AttackSpec("fab-50x2 targeted-3", "fab", 50, 2, targets=3)),
        ("carlini_wagner-100", AttackSpec("carlini_wagner-100", "carlini_wagner", 100)),
        ("hopskipjump-1000", AttackSpec("hopskipjump-1000", "hopskipjump", 1000)),
    ],
)
def test_a_spec_says_kind_effort_restarts_and_what_is_ascended(spec: str, expected: AttackSpec) -> None:
    assert parse_attack(spec) == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("mifgsm-10", "'mifgsm-10' is no attack; write one of apgd-N, "),
        ("apgd", "write one of"),
        ("apgd-0 dlr", "write one of"),
        ("apgd-100", "write 'apgd-N cross_entropy' or 'apgd-N dlr' or 'apgd-N targeted-K'"),
        ("apgd-100 tempered", "write 'apgd-N cross_entropy' or"),
        ("apgd-100 targeted", "write 'apgd-N cross_entropy' or"),
        ("apgd-100 targeted-0", "write 'apgd-N cross_entropy' or"),
        ("pgd-100 cross_entropy", "write 'pgd-N tempered' or 'pgd-N dlr'"),
        ("fab-100", "write 'fab-N targeted-K'"),
        ("spsa-40 dlr", "write 'spsa-N' alone"),
        ("spsa-40x2", "spsa has no restarts: write 'spsa-N'"),
        ("spsa-40 ", "write one of"),
        (7, "7 is no attack"),
    ],
)
def test_a_bad_spec_is_refused_in_one_sentence_with_what_to_write(spec: object, expected: str) -> None:
    with pytest.raises(HardbitError) as caught:
        parse_attack(spec)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("suite.attacks: ")


@given(st.text("apgdfbspsa-x0129 rtelc_\n", max_size=12).map(lambda text: f"apgd-{text}"))
def test_no_text_is_taken_for_something_that_it_does_not_say(text: str) -> None:
    try:
        spec = parse_attack(text)
    except HardbitError:
        return
    assert spec.name == text
    assert text.startswith(f"{spec.kind}-{spec.effort}")


def test_targets_are_capped_at_the_other_classes() -> None:
    spec = parse_attack("apgd-10 targeted-9")
    assert (spec.targets_of(10), spec.targets_of(43), spec.targets_of(3)) == (9, 9, 2)
    assert spec.settings(3) == {"steps": 10, "restarts": 1, "loss": "dlr", "targets": 2}


def test_an_attack_of_another_norm_is_refused() -> None:
    parse_attack("carlini_wagner-9").refuse_other_norm("l2")
    with pytest.raises(HardbitError, match="is an attack in l2, the threat model is linf"):
        parse_attack("carlini_wagner-9").refuse_other_norm("linf")
    assert [kind for kind, rule in KINDS.items() if "linf" not in rule.norms] == ["carlini_wagner"]


class TestSuites:
    def test_names_ask_for_more_and_more(self) -> None:
        assert SUITES["quick"].attacks == ()
        assert SUITES["standard"].attacks == ("apgd-50 cross_entropy",)
        full = SUITES["full"]
        assert (full.steps, full.restarts, full.square_queries, full.surrogates) == (20, 3, 5000, SURROGATES)
        assert [spec.kind for spec in full.further] == ["pgd", "apgd", "apgd", "fab", "spsa", "random"]
        assert [suite.corruption_images for suite in SUITES.values()] == [0, 0, 1000]

    def test_a_changed_list_of_attacks_is_another_suite(self) -> None:
        assert named_suite("standard", attacks=()).name == "custom"
        document = {**SUITES["standard"].to_document(), "attacks": []}
        with pytest.raises(HardbitError, match="not those of standard"):
            suite_from_document(document)
        assert suite_from_document({**document, "name": "custom"}).attacks == ()

    def test_a_manifest_of_before_there_were_further_attacks_means_its_name(self) -> None:
        document = SUITES["standard"].to_document()
        for key in ("attacks", "corruption_images", "noise_images", "loss_images"):
            del document[key]
        assert suite_from_document(document) == SUITES["standard"]

    @pytest.mark.parametrize(
        ("attacks", "expected"),
        [
            (("apgd-5 dlr", "apgd-5 dlr"), "'apgd-5 dlr' is made twice"),
            (("nonsense",), "'nonsense' is no attack"),
        ],
    )
    def test_what_cannot_be_run_is_refused(self, attacks: tuple[str, ...], expected: str) -> None:
        with pytest.raises(HardbitError, match=expected):
            Suite("custom", steps=1, restarts=1, losses=("margin",), attacks=attacks)

    def test_losses_that_nothing_ascends_are_known(self) -> None:
        suite = Suite("custom", steps=1, restarts=1, losses=("cross_entropy",))
        assert suite.losses_left_out == ("margin", "tempered")
        assert replace(suite, attacks=("apgd-9 targeted-3",)).losses_left_out == ("tempered",)
        assert replace(suite, attacks=("fab-9 targeted-3", "pgd-9 tempered")).losses_left_out == ("margin",)
        assert SUITES["full"].losses_left_out == ()

    def test_full_goes_through_the_smooth_surrogate_where_there_is_one(self) -> None:
        full = SUITES["full"]
        assert full.without_smooth(NetworkBits(8, 8)) == replace(full, surrogates=("straight-through",))
        assert full.without_smooth(NetworkBits(2, 8)).name == "custom"
