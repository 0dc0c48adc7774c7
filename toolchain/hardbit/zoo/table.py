"""Cards as tables, and the places in a Markdown page that such tables fill."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hardbit.report.wording import MISSING, interval, milliseconds, percent
from hardbit.zoo.card import Attack, Bits, Card
from hardbit.zoo.listing import Model
from hardbit_deploy.errors import HardbitError

__all__ = ["ALIGNMENT", "COLUMNS", "duration", "fill", "markdown_table", "model_row", "size", "widths"]

FLOAT = 32
COLUMNS = (
    "model", "data", "network", "widths", "eps", "clean", "FGSM", "PGD", "Square", "worst case", "latency",
    "engine", "training", "verdict",
)  # fmt: skip
ALIGNMENT = "<<<<>>>>>>>>><"


def model_row(card: Card) -> tuple[str, ...]:
    """One cell for each of `COLUMNS`. PGD is the strongest of its losses and surrogates, the worst case has its 95 %
    interval, latency is the median, engine the size of the graph with its weights."""
    worst = card.attack("worst_case")
    norm = "" if card.threat_model.norm == "linf" else " L2"
    return (
        card.name,
        card.data.set,
        card.network.architecture,
        widths(card.bits),
        f"{card.threat_model.eps_255:g}/255{norm}",
        _rate(card.attack("clean")),
        _rate(card.strongest("fgsm")),
        _rate(card.strongest("pgd")),
        _rate(card.strongest("square")),
        f"{_rate(worst)} ({interval(worst.interval)})" if worst else MISSING,
        milliseconds(card.latency.p50_ms) if card.latency else MISSING,
        size(card.engine.bytes),
        duration(card.training.seconds),
        f"{card.verdict}, alarm accepted" if any(a.status == "accepted" for a in card.alarms) else card.verdict,
    )


def widths(bits: Bits) -> str:
    """`W4A8`: bits of weights and activations; `float` where nothing is quantized; `+` where single layers differ."""
    kinds = (bits.weights, bits.activations)
    name = "float" if set(kinds) == {FLOAT} else f"W{_bits(bits.weights)}A{_bits(bits.activations)}"
    return f"{name}+" if bits.layers else name


def _bits(width: int) -> str:
    return "float" if width == FLOAT else str(width)


def size(count: int) -> str:
    """Bytes as kB or MB of 1,000."""
    return f"{count / 1e6:.2f}\N{NO-BREAK SPACE}MB" if count >= 1e6 else f"{count / 1e3:.0f}\N{NO-BREAK SPACE}kB"


def duration(seconds: float) -> str:
    """Minutes below two hours, hours above; not known where nothing was recorded."""
    if not seconds:
        return MISSING
    minutes = seconds / 60
    return f"{minutes:.0f}\N{NO-BREAK SPACE}min" if minutes < 120 else f"{minutes / 60:.1f}\N{NO-BREAK SPACE}h"


def _rate(attack: Attack | None) -> str:
    return percent(attack.rate) if attack else MISSING


def markdown_table(models: Sequence[Model], page: Path) -> str:
    """The models that have a card, each linked to its card.md from where `page` lies."""
    cards = [(model, model.card) for model in models if model.card is not None]
    if not cards:
        return "No model here has been published yet."
    rules = {"<": "---", ">": "---:"}
    lines = [COLUMNS, [rules[side] for side in ALIGNMENT]]
    for model, card in cards:
        link = Path(os.path.relpath(model.folder / "card.md", page.parent)).as_posix()
        row = model_row(card)
        bold = [f"**{cell}**" if column == "worst case" else cell for column, cell in zip(COLUMNS, row, strict=True)]
        lines.append([f"[{card.name}]({link})", *bold[1:]])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def fill(text: str, page: Path, models: Sequence[Model]) -> str:
    """`text`, which is or will be that of `page`, with its marked places filled from the cards.

    `<!-- zoo -->` to `<!-- /zoo -->` gets the table of all models, `<!-- zoo NAME -->` to `<!-- /zoo -->` the scores of
    one; where that one has no card the place is left as it is. Raises HardbitError if no place is marked, one is not
    closed, or a model is not known.
    """
    from hardbit.report.card import scores

    known = {model.name: model for model in models}

    def filled(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None:
            return f"{match['open']}\n{markdown_table(models, page)}\n{match['close']}"
        if name not in known:
            raise HardbitError(f"there is no model '{name}'", where=str(page), remedy=f"known: {', '.join(known)}")
        card = known[name].card
        return match[0] if card is None else f"{match['open']}\n{scores(card)}\n{match['close']}"

    if len(_PLACE.findall(text)) != len(_OPEN.findall(text)) or not _OPEN.search(text):
        raise HardbitError(
            "there is no place for a table in it", where=str(page), remedy="write <!-- zoo --> and <!-- /zoo --> there"
        )
    return _PLACE.sub(filled, text)


_OPEN = re.compile(r"<!-- zoo(?: (?P<name>[a-z0-9][a-z0-9._-]*))? -->")
_PLACE = re.compile(rf"(?P<open>{_OPEN.pattern})\n(?:(?!<!-- zoo).)*?(?P<close><!-- /zoo -->)", re.DOTALL)
