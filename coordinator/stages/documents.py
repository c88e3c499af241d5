"""The documents of every stage: what it would do, and how it ended. Their fields are the keys that `--json` prints."""

import msgspec

from coordinator.wire.exit_codes import ExitCode


class DryRun(msgspec.Struct, frozen=True):
    """What a stage would do with a data folder as it is. Its fields are the document that `--dry-run --json` prints."""

    @property
    def has_work(self) -> bool:
        """Whether the stage would change what later stages begin with."""
        raise NotImplementedError

    def to_text(self) -> str:
        """Return the plan as text."""
        raise NotImplementedError


class StageSummary(msgspec.Struct, frozen=True, kw_only=True):
    """How a stage ended. The fields of its subclasses are the document that `--json` prints."""

    exit_code: ExitCode
    status: str
    message: str
