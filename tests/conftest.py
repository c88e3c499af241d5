"""Fixtures of several folders: one emulator for the session, the program from outside."""

from tests.support.eia_client import emulator, recorded
from tests.support.program import coordinator, undisturbed

__all__ = ["coordinator", "emulator", "recorded", "undisturbed"]
