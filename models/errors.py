"""The error of the models' boundary."""


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be used as it is."""
