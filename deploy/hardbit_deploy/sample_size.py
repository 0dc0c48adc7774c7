"""How many images a comparison needs, or what so many images can see: normal approximations of one-line tests."""

from __future__ import annotations

import math

from hardbit_deploy.distributions import bisect, normal_quantile, two_sided_quantile

__all__ = [
    "CLOSEST",
    "images_needed_for_estimate",
    "images_needed_paired",
    "images_needed_paired_noninferiority",
    "images_needed_rate",
    "images_needed_unpaired",
    "visible_difference",
]


CLOSEST = 1e-9  # rates nearer than this are told apart by no number of images: they differ by how floats were rounded


def images_needed_rate(reference: float, margin: float, confidence: float = 0.95, power: float = 0.8) -> int:
    """Images with which a system exactly at `reference` passes a gate of `margin` below it with `power`."""
    if not 0 < margin < reference <= 1:
        raise ValueError(f"a margin of {margin} below a reference of {reference} is no gate")
    needed = images_needed_for_estimate(reference, reference - margin, confidence, power)
    if needed is None:
        raise ValueError("the margin is too small for any number of images")
    return needed


def images_needed_paired(discordance: float, drop: float, confidence: float = 0.95, power: float = 0.8) -> int:
    """Images with which a two-sided McNemar test sees a `drop` between systems that disagree on `discordance` of them.

    Connor, Biometrics 43 (1987) 207.
    """
    if not 0 < drop <= discordance <= 1:
        raise ValueError(f"a drop of {drop} is impossible at a discordance of {discordance}")
    spread = two_sided_quantile(confidence) * math.sqrt(discordance)
    spread += normal_quantile(power) * math.sqrt(discordance - drop * drop)
    return math.ceil((spread / drop) ** 2)


def images_needed_paired_noninferiority(
    discordance: float, margin: float, confidence: float = 0.95, power: float = 0.8
) -> int:
    """Images with which two equal systems that disagree on `discordance` of them pass a paired gate of `margin`."""
    if margin <= 0 or not 0 < discordance <= 1:
        raise ValueError(f"a margin of {margin} at a discordance of {discordance} is no gate")
    return math.ceil((normal_quantile(confidence) + normal_quantile(power)) ** 2 * discordance / margin**2)


def images_needed_unpaired(first: float, second: float, confidence: float = 0.95, power: float = 0.8) -> int:
    """Images *for each of two* independent samples, two-sided: what the comparison costs without the pairing."""
    mean = (first + second) / 2
    spread = two_sided_quantile(confidence) * math.sqrt(2 * mean * (1 - mean))
    spread += normal_quantile(power) * math.sqrt(first * (1 - first) + second * (1 - second))
    return math.ceil((spread / (first - second)) ** 2)


def visible_difference(images: int, discordance: float, confidence: float = 0.95, power: float = 0.8) -> float:
    """The smallest paired drop that `images` show with `power`: the inverse of `images_needed_paired`."""
    z_alpha, z_beta = two_sided_quantile(confidence), normal_quantile(power)
    # Solve drop * sqrt(images) = z_alpha sqrt(psi) + z_beta sqrt(psi - drop^2); its right side falls, its left rises.
    root = math.sqrt(discordance)

    def excess(drop: float) -> float:
        return drop * math.sqrt(images) - z_alpha * root - z_beta * math.sqrt(max(0.0, discordance - drop * drop))

    return bisect(excess, 0.0, root)


def images_needed_for_estimate(truth: float, line: float, confidence: float, power: float) -> int | None:
    """Score test of one rate against `line` when `truth` holds: normal approximation of both distributions.

    A truth of one has no spread to approximate: the exact interval passes once `line` to the power n is small enough.
    """
    if abs(truth - line) < CLOSEST:
        return None
    if truth == 1:
        return math.ceil(math.log(1 - confidence) / math.log(line))
    spread = normal_quantile(confidence) * math.sqrt(line * (1 - line)) + normal_quantile(power) * math.sqrt(
        truth * (1 - truth)
    )
    return math.ceil((spread / (truth - line)) ** 2)
