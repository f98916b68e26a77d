"""Torch modules of the policies, the checkpoints they load and the stages they split into."""
