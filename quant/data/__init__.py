"""Recorded observations, from recordings and LeRobot datasets."""
