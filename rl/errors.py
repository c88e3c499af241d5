"""Errors of grid control, drawn as a tree.

ControlError
├── GridError     a parameter of fleet or cost breaks a rule that exactness rests on
├── DataError     arrays that do not fit one another, or hold what cannot be used
└── SolveError    a linear program that HiGHS did not solve
"""

from __future__ import annotations


class ControlError(Exception):
    """Base. The message names the subject and the rule. `exit_code`: of a program that ends by it."""

    exit_code = 1


class GridError(ControlError):
    """A parameter of fleet or cost breaks a rule that exactness rests on."""


class DataError(ControlError):
    """Arrays that do not fit one another, or hold what cannot be used."""


class SolveError(ControlError):
    """A linear program that HiGHS did not solve."""
