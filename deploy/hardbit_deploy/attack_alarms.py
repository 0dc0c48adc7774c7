"""Named checks that set attacks against each other: what a weak one finds, a strong one has to find too.

As in `alarms`, each takes counts and says in its reason what it saw; where hundreds of images cannot hold a limit
exactly, the exact 95 % bound is held to it.

Boundary: judges counts; what produces them is in `chunk`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hardbit_deploy.alarm import CONFIDENCE, HALF_A_POINT, ONE_POINT, Alarm, judged, missing, not_run
from hardbit_deploy.attack_specs import AttackSpec
from hardbit_deploy.network_bits import NetworkBits
from hardbit_deploy.statistics import clopper_pearson

__all__ = [
    "iterative_beats_one_step",
    "losses",
    "noise_does_not_win",
    "stronger_attacks",
    "surrogates",
    "white_box_beats_black_box",
    "white_box_beats_transfer",
]

FEW_IMAGES = 2  # that one attack may fool alone whatever their share, for chance has its part in a search
FIVE_POINTS = 0.05
FEWEST_BY_NOISE = 1  # that random points may fool alone


def iterative_beats_one_step(missed: int, images: int) -> Alarm:
    """PGD fools what FGSM fools, to half a point of the images (or one image, where half a point is less)."""
    if not images:
        return not_run("iterative_beats_one_step", HALF_A_POINT, "no images")
    reason = f"{missed} of {images} images are fooled by FGSM and by no PGD"
    over = missed > max(1, int(HALF_A_POINT * images))
    return judged("iterative_beats_one_step", over, missed / images, HALF_A_POINT, reason)


def white_box_beats_black_box(
    alone: int, images: int, bits: NetworkBits, *, was_run: bool, further: Mapping[str, int] | None = None
) -> Alarm:
    """Images that Square fools and no gradient does: at most 1 %, or two; `further` attacks by queries count with it.

    Such attacks see no gradient, so what they find alone was hidden from those that do. Where activations have 3 bits
    and fewer, a suite without Square is an alarm by itself.
    """
    name = "white_box_beats_black_box"
    if not images:
        return not_run(name, ONE_POINT, "no images")
    if not was_run and bits.need_queries:
        reason = f"Square was not run, and with {bits.fewest_of_activations}-bit activations gradients mislead"
        return missing(name, ONE_POINT, reason)
    if not was_run and not further:
        return not_run(name, ONE_POINT, "Square was not run")
    found = {**({"Square": alone} if was_run else {}), **(further or {})}
    count = sum(found.values())
    each = ", ".join(f"{attack} {number}" for attack, number in found.items())
    reason = f"{count} of {images} images are fooled by Square and by no attack that uses gradients"
    if further:
        reason = f"{count} of {images} images are fooled by queries and by no attack that uses gradients ({each})"
    return judged(name, count > max(FEW_IMAGES, ONE_POINT * images), count / images, ONE_POINT, reason)


def white_box_beats_transfer(alone: Mapping[str, int], images: int) -> Alarm:
    """Images made on another network that fool this one, where no gradient of its own does: at most 1 %.

    `alone` counts them for each source, and under "all" for all sources together.
    """
    name = "white_box_beats_transfer"
    if not images or not alone:
        return not_run(name, ONE_POINT, "no images" if alone else "the bundle holds no images of other networks")
    count = alone["all"]
    each = ", ".join(f"{source} {number}" for source, number in alone.items() if source != "all")
    reason = f"{count} of {images} images are fooled by transfer and by no attack that uses gradients ({each})"
    return judged(name, count > max(1, ONE_POINT * images), count / images, ONE_POINT, reason)


def surrogates(alone: Mapping[str, int], images: int, bits: NetworkBits) -> Alarm:
    """Below 4 bits gradients through both surrogates are needed; their union is used.

    `alone` counts, for each surrogate that was used, the images that gradients through it fool and no others do.
    """
    if not images:
        return not_run("surrogates", None, "no images")
    if len(alone) < 2:
        reason = f"only the gradient through the {next(iter(alone))} surrogate was used"
        if bits.need_both_surrogates:
            return missing("surrogates", None, f"{reason}, and the network has layers of {bits.fewest} bits")
        return not_run("surrogates", None, reason)
    each = ", ".join(f"{number} through the {surrogate} one alone" for surrogate, number in alone.items())
    reason = f"of {images} images gradients fool {each}; their union is used"
    return judged("surrogates", False, max(alone.values()) / images, None, reason)


def noise_does_not_win(alone: int, images: int) -> Alarm:
    """Images that the best of some random points fools and neither FGSM nor PGD does: at most one."""
    if not images:
        return not_run("noise_does_not_win", FEWEST_BY_NOISE, "no images")
    reason = f"{alone} of {images} images are fooled by random points and by no PGD"
    return judged("noise_does_not_win", alone > FEWEST_BY_NOISE, alone, FEWEST_BY_NOISE, reason)


def losses(survivors: Mapping[str, int], images: int, left_out: Sequence[tuple[str, int, int]]) -> Alarm:
    """Cross-entropy, margin and tempered cross-entropy find the same images to a point, or the union of them is used.

    `survivors` counts those of PGD with each loss that the suite climbs; `left_out` are (loss, survivors of the whole
    suite that fall to PGD with it, images) of the others. The alarm is raised when the exact one-sided 95 % lower bound
    of what one of those finds is above a point (6 of 256 images), and it is more than two images: it starts elsewhere,
    and chance has its part in that.
    """
    if not images:
        return not_run("losses", ONE_POINT, "no images")
    each = ", ".join(f"{loss} {count}" for loss, count in survivors.items())
    reason = f"of {images} images survive PGD with {each}{'; their union is used' if len(survivors) > 1 else ''}"
    seen = [(clopper_pearson(fell, of, 2 * CONFIDENCE - 1)[0], fell / of) for _, fell, of in left_out if of]
    if not seen:
        return judged("losses", False, (max(survivors.values()) - min(survivors.values())) / images, ONE_POINT, reason)
    reason += "; left out, " + ", ".join(f"{loss} fools {fell} of {of} more" for loss, fell, of in left_out if of)
    bound, value = max(seen)
    many = max(fell for _, fell, of in left_out if of) > FEW_IMAGES
    return judged("losses", many and bound > ONE_POINT, value, ONE_POINT, reason)


def stronger_attacks(found: Mapping[AttackSpec, int], images: int) -> Alarm:
    """What further attacks along gradients find on images that withstood FGSM, PGD, Square and transfer.

    What they find belongs to the worst case. Over 1 % by one of them is told of, since PGD alone would have overstated,
    and so is APGD with a loss that PGD had climbed where it finds over half a point: it differs by its steps alone, so
    PGD had not converged. Both are mended by what found them. Over five points in all (exact one-sided 95 % lower
    bound) are an alarm, for other checks rest on PGD: how accuracy falls with eps, and what more effort would find.
    """
    if not images or not found:
        return not_run("stronger_attacks", FIVE_POINTS, "no images" if found else "no further attack was run")
    each = ", ".join(f"{spec.name} {fell}" for spec, fell in found.items())
    reason = f"of {images} images fall to further attacks alone: {each}"
    told = [spec.name for spec, fell in found.items() if fell > max(FEW_IMAGES, ONE_POINT * images)]
    if told:
        reason += f"; without {', '.join(told)} robust accuracy would be overstated by over a point"
    steps_alone = [spec for spec in found if spec.kind == "apgd" and not spec.targets]
    beaten = [spec.name for spec in steps_alone if found[spec] > max(FEW_IMAGES, HALF_A_POINT * images)]
    if beaten:
        reason += f"; {', '.join(beaten)} beats PGD by over half a point, so PGD had not converged"
    total = sum(found.values())
    raised = clopper_pearson(total, images, 2 * CONFIDENCE - 1)[0] > FIVE_POINTS
    if raised:
        reason += "; PGD misses too much for what rests on it"
    return judged("stronger_attacks", raised, total / images, FIVE_POINTS, reason)
