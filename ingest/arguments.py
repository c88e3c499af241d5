"""Arguments of the loaders, as users write them in Python."""

from collections.abc import Iterable, Sequence

from ingest.errors import UsageError
from ingest.periods import Moment, moment_bound


def names_of(argument: str, given: Sequence[str] | str, example: str) -> list[str]:
    """Return an argument that names respondents or variables as a list.

    Raises:
        UsageError: it names nothing, or holds something that is no text.
    """
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{argument} {given!r}: write codes as text, e.g. {example} or [{example}]")
    if not any(name.strip(" ,") for name in names):
        raise UsageError(f"{argument} {given!r}: no code is named; name at least one, e.g. {example}")
    return names


def period_of(start: Moment, end: Moment) -> tuple[str, str]:
    """Return the first and the last hour of a period as users write it.

    Raises:
        UsageError: a bound has another form.
    """
    try:
        return moment_bound(start, last=False), moment_bound(end, last=True)
    except ValueError as error:
        raise UsageError(f"period {start} to {end}: {error}") from error
