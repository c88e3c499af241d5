"""The report in a real browser: no overflow and no console message, at desktop and phone width, in light and dark.

The screenshots stay in the test's folder for inspection.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.report import build
from coordinator.report.render.page import TITLES
from tests.support.browser import CHROMIUM, chromium
from tests.support.report_data import controlled, extracted, trained

WIDER = """[...document.querySelectorAll('body *')].filter(one => !one.closest('.table') &&
    one.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(one => one.outerHTML.slice(0, 200))"""
CUT = """[...document.querySelectorAll('svg text')].filter(one => { const box = one.getBBox(), all = one.ownerSVGElement.viewBox.baseVal;
    return box.x < -1 || box.x + box.width > all.width + 1 || box.y + box.height > all.height + 1 }).map(one => one.textContent)"""


@pytest.mark.timeout(600)
@pytest.mark.skipif(CHROMIUM is None, reason="no `chromium` on this host: apt-get install chromium")
def test_page_fits_every_width_without_messages(tmp_path: Path) -> None:
    data = controlled(trained(extracted(tmp_path / "data")))
    path = tmp_path / "report.html"
    build.report(data, path)
    grounds = []
    with chromium(tmp_path / "profile") as tab:
        for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark"), (320, "light")):
            tab.open(path, width, 900, scheme)
            assert tab.value("[...document.querySelectorAll('section')].map(one => one.id)") == list(TITLES)
            assert tab.value("document.documentElement.scrollWidth") <= width
            assert tab.value(WIDER) == []
            assert tab.value(CUT) == []
            grounds.append(tab.value("getComputedStyle(document.body).backgroundColor"))
            tab.screenshot(tmp_path / f"report-{width}-{scheme}.png")
        assert tab.messages == []
    assert grounds[0] == grounds[2] == grounds[4] != grounds[1] == grounds[3]
