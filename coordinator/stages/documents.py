"""The documents of every stage: what it would do, and how it ended. Their fields are the keys that `--json` prints."""

import msgspec

from coordinator.stages.display import approximate
from coordinator.wire.exit_codes import ExitCode

LAST_RUN, PLANNED = "as the last such run in this folder took", "a rough plan: no such run has ended in this folder yet"


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage would do with a data folder as it is. Its fields are the document that `--dry-run --json` prints.

    Attributes:
        eta_s: Seconds that it would take; None: unknown, as no run of the same request has been measured here.
        eta_from: Where the estimate comes from.
    """

    eta_s: float | None = None
    eta_from: str = ""

    @property
    def has_work(self) -> bool:
        """Whether the stage would change what later stages begin with."""
        raise NotImplementedError

    def to_text(self) -> str:
        """Return the plan as text."""
        raise NotImplementedError

    @property
    def duration(self) -> str:
        """The line about the time that it would take; "" if nothing is to be done."""
        if not self.has_work:
            return ""
        if self.eta_s is None:
            return "time: unknown, because no such run has ended in this folder"
        return f"time: about {approximate(self.eta_s)}, {self.eta_from}"


class StageSummary(msgspec.Struct, frozen=True, kw_only=True):
    """How a stage ended. The fields of its subclasses are the document that `--json` prints."""

    exit_code: ExitCode
    status: str
    message: str
