"""One error class per boundary. A message says what and where, got against expected, what to do."""


class BundleError(Exception):
    """A bundle is missing, damaged, or does not fit this runtime."""


class ObservationError(ValueError):
    """An image, state, noise or instruction that the policy cannot take."""


class EngineError(Exception):
    """An engine could not be loaded, bound or run."""


class EpisodeError(RuntimeError):
    """An episode was used at a time when its contract does not allow it."""


class RobotError(RuntimeError):
    """The robot or simulator cannot be used, or was used at the wrong time."""


class CameraError(RobotError):
    """A camera cannot be opened, or shows nothing that may be used."""


class RecordingError(ValueError):
    """An episode, or a file that should hold one, is not what it has to be."""


class OutputError(Exception):
    """Something cannot be written, or what is in its place is not ours to replace."""


class PowerModeWarning(UserWarning):
    """Plans were tuned in another power mode than the one they run in."""


class CameraWarning(UserWarning):
    """A camera works, and not as it should."""


class UnmeasuredWarning(UserWarning):
    """A bundle runs although nobody could judge it by every gate."""
