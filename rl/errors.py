"""Exceptions of grid control.

ControlError
├── GridError     a parameter of fleet or cost breaks a rule that the exact optimum depends on
├── DataError     arrays or files that do not fit one another, or have unusable content
└── SolveError    HiGHS did not solve a linear program
"""


class ControlError(Exception):
    """Base class. The message names the subject and the rule. `exit_code`: exit code of a program that this exception ends."""

    exit_code = 1


class GridError(ControlError):
    """A parameter of fleet or cost breaks a rule that the exact optimum depends on."""


class DataError(ControlError):
    """Arrays or files do not fit one another, or have unusable content."""


class SolveError(ControlError):
    """HiGHS did not solve a linear program."""
