"""Tests that run wherever a bundle runs, the board included."""
