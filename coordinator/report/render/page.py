"""Render the report as one HTML page from the templates: a style sheet, no script, nothing from a network."""

import re
from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from coordinator.report.model import Absent, Facts
from coordinator.report.render import sections_data, sections_grid, sections_runs
from coordinator.report.render.charts import number, shown

TITLES = {
    "demand": "Demand",
    "duration": "Load duration",
    "mix": "Generation mix",
    "operators": "Operators' forecast error",
    "interchange": "Interchange",
    "coverage": "Gaps and coverage",
    "extraction": "Extraction",
    "training": "Training",
    "forecasts": "Forecasts",
    "backtests": "Backtests",
    "control": "Control",
    "provenance": "Sources and provenance",
}
"""Sections in the order of the page: id, which is also the field of `Facts` and the name of the template, and title."""

VIEWS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "demand": sections_grid.demand,
    "duration": sections_grid.duration,
    "mix": sections_grid.mix,
    "operators": sections_grid.operators,
    "interchange": sections_grid.interchange,
    "coverage": sections_data.coverage,
    "extraction": sections_data.extraction,
    "training": sections_runs.training,
    "forecasts": sections_runs.forecasts,
    "backtests": sections_runs.backtests,
    "control": sections_runs.control,
    "provenance": lambda found: {},
}
"""What a section's template gets in addition to its facts."""


def page(facts: Facts) -> str:
    """Return the whole page. It always has every section; a section without facts names the command that makes them."""
    templates = Environment(
        loader=PackageLoader("coordinator.report.render"),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": number, "code": _code}

    def content(name: str) -> Markup:
        found = getattr(facts, name)
        absent = isinstance(found, Absent)
        view = {} if absent else VIEWS[name](found)
        return Markup(templates.get_template("absent.html" if absent else f"{name}.html").render(found=found, **view))

    sections = [(name, title, content(name)) for name, title in TITLES.items()]
    return templates.get_template("page.html").render(facts=facts, sections=sections) + "\n"


def _code(text: str) -> Markup:
    """Return escaped text in which words between backticks are code."""
    # A plain text for `re`: until Python 3.11 it joins what replaces a Markup as Markup, which escapes it again.
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(shown(text)))))
