"""The page's two files: its style sheet, which begins with the report's, and its script."""

from functools import lru_cache
from importlib.resources import files


@lru_cache
def asset(name: str) -> tuple[bytes, str]:
    """Return the content and the media type of `watch.css` or `watch.js`."""
    own = files("coordinator.watch").joinpath("templates", name).read_bytes()
    if not name.endswith(".css"):
        return own, "text/javascript"
    return files("coordinator.report.render").joinpath("templates", "style.css").read_bytes() + own, "text/css"
