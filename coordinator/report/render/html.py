"""The pieces that sections are made of, as HTML text: figures with keys and captions, tables, notes. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from coordinator.report.model import Absent

TITLES = {
    "coverage": "Coverage",
    "extraction": "Extraction",
    "training": "Training",
    "forecasts": "Forecasts",
    "control": "Control",
    "ring": "The ring",
    "provenance": "Provenance",
}
"""Sections in the order of the page: the id of each and its title."""
Key = Sequence[tuple[str, str]]  # (class of the swatch, what it stands for)


def figure(title: str, picture: str, caption: str, key: Key = ()) -> str:
    """A picture under its title, with a key that wraps and a caption that says what is to be seen and in which unit."""
    swatches = "".join(f'<li><i class="{kind}"></i>{escape(name)}</li>' for kind, name in key)
    listed = f'<ul class="key">{swatches}</ul>' if key else ""
    return f"<figure><h4>{escape(title)}</h4>{picture}{listed}<figcaption>{escape(caption)}</figcaption></figure>"


def figures(*each: str) -> str:
    """Side by side where there is room."""
    return f'<div class="figures">{"".join(each)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table that scrolls by itself on a narrow screen; the first `words` columns are text, the others numbers."""
    kinds = ["" if i < words else ' class="n"' for i in range(len(header))]
    head = "".join(f"<th{kind}>{escape(cell)}</th>" for cell, kind in zip(header, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="table" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def numbers(*pairs: tuple[str, str]) -> str:
    """Large figures with what they count below."""
    cells = "".join(f"<div><dd>{escape(value)}</dd><dt>{escape(name)}</dt></div>" for name, value in pairs)
    return f'<dl class="numbers">{cells}</dl>'


def say(text: str) -> str:
    """A paragraph; what stands between backticks is code."""
    coded = re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
    return f"<p>{coded}</p>"


def folded(title: str, content: str) -> str:
    """Content that opens at a click."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def absent(what: Absent) -> str:
    """What a stage that has nothing to show says."""
    return f'<p class="absent">Not here: {escape(what.why)}.<br><code>{escape(what.command)}</code></p>'


def section(name: str, content: str) -> str:
    """A section under its title."""
    return f'<section id="{name}"><h2>{escape(TITLES[name])}</h2>{content}</section>'
