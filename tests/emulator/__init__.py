"""Tests of the emulator: its answers, faults, limits, worlds and its life as a process."""
