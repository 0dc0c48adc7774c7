"""Templates to text: everything is escaped, styles and script go inside, and the page may load nothing."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hardbit.report import wording
from hardbit_deploy.known_alarms import alarm_in_words

__all__ = ["chart_styles", "render"]

FOLDER = Path(__file__).parent

# Paper shows what the screen folds away.
SCRIPT = 'addEventListener("beforeprint",()=>document.querySelectorAll("details").forEach(d=>d.open=true));'

FILTERS = {
    "percent": wording.percent,
    "interval": wording.interval,
    "milliseconds": wording.milliseconds,
    "count": wording.count,
    "number": wording.number,
    "attack_label": wording.attack_label,
    "agreement_label": wording.agreement_label,
    "settings_line": wording.settings_line,
    "alarm_in_words": alarm_in_words,
}


def render(template: str, **context: Any) -> str:
    """One self-contained page. Autoescape is on for every file, whatever its name ends in."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    styles = Markup((FOLDER / "report.css").read_text(encoding="utf-8")) + chart_styles()
    return environment.get_template(template).render(
        styles=styles, script=Markup(SCRIPT), policy=_content_security_policy(), **context
    )


def chart_styles() -> Markup:
    return Markup((FOLDER / "charts.css").read_text(encoding="utf-8"))


def _content_security_policy() -> str:
    """A browser that obeys it fetches nothing and runs no script but the one above, should escaping ever fail."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
