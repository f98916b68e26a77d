"""Cameras in processes of their own."""
