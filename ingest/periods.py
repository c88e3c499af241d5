"""Parse periods as users write them: `2024`, `2024-01`, `2024-01-31`, `2024-01-31T05`, `2015-07:2017`, or dates and times of Python."""

from datetime import UTC, date, datetime
from numbers import Integral
from typing import TYPE_CHECKING, TypeAlias, Union

from ingest.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

Moment: TypeAlias = Union[str, date, "np.datetime64"]  # a datetime and pandas' Timestamp are dates
FIRST_YEAR, LAST_YEAR = 2000, 2100  # bounds that catch a typing error in a year
FORMS = "expected YYYY, YYYY-MM, YYYY-MM-DD or YYYY-MM-DDTHH"


def parse_bound(text: str, *, last: bool) -> str:
    """Return the first or the last hour of what `text` names, as `YYYY-MM-DDTHH`.

    Args:
        text: `YYYY`, `YYYY-MM`, `YYYY-MM-DD` or `YYYY-MM-DDTHH`, in UTC.
        last: return the last hour instead of the first.

    Raises:
        ValueError: the text has another form, or names a date that does not exist.
    """
    import calendar  # here: the help of a command line has no use for it

    day, _, hour = text.strip().partition("T")
    try:
        numbers = [int(part) for part in day.split("-")]
        year, month, date = (*numbers, 0, 0)[:3]
        clock = int(hour or (23 if last else 0))
    except ValueError:
        raise ValueError(FORMS) from None
    if len(numbers) > 3 or year < 1000:
        raise ValueError(FORMS)
    if not FIRST_YEAR <= year <= LAST_YEAR:
        raise ValueError(f"the year {year} is not between {FIRST_YEAR} and {LAST_YEAR}")
    month = month or (12 if last else 1)
    date = date or (calendar.monthrange(year, month)[1] if last else 1)
    return datetime(year, month, date, clock).strftime("%Y-%m-%dT%H")


def moment_bound(value: Moment, *, last: bool) -> str:
    """Return the first or the last hour of what `value` names, as `YYYY-MM-DDTHH`.

    Args:
        value: text as in `parse_bound`; a date, which means all of its hours; a datetime, Timestamp or datetime64 at a whole
            hour, in UTC where it has no time zone.
        last: return the last hour instead of the first.

    Raises:
        ValueError: the text has another form, or the time is within an hour.
    """
    if isinstance(value, str):
        return parse_bound(value, last=last)
    if isinstance(value, Integral):
        raise ValueError(f'{value} is a number: write it in quotes, "{value}"')
    plain: object = value
    if not isinstance(value, date) and hasattr(
        value, "item"
    ):  # a datetime64; one that counts nanoseconds gives a number
        plain = value.item() if isinstance(value.item(), date) else value.astype("datetime64[us]").item()
    if not isinstance(plain, date):
        raise ValueError(f"{value!r} is no text, date, datetime, Timestamp or datetime64")
    if not isinstance(plain, datetime):
        return parse_bound(plain.isoformat(), last=last)
    if plain.tzinfo is not None:
        plain = plain.astimezone(UTC)
    if plain.minute or plain.second or plain.microsecond:
        raise ValueError("expected a time at a whole hour")
    return plain.strftime("%Y-%m-%dT%H")


def parse_period(text: str, option: str) -> tuple[str, str]:
    """Return the first and the last hour of a period, as `YYYY-MM-DDTHH`.

    Args:
        text: `START:END`, or one bound, which means all of its hours.
        option: name of the option that holds the text, for the message.

    Raises:
        UsageError: a bound has another form.
    """
    start, _, end = text.partition(":")
    try:
        return parse_bound(start, last=False), parse_bound(end or start, last=True)
    except ValueError as error:
        raise UsageError(f"--{option} {text}: {error}; write YYYY[-MM[-DD]][:YYYY[-MM[-DD]]]") from error
