"""The error of the export boundary."""


class ExportError(Exception):
    """An export that cannot start, or whose result failed a gate. Nothing was written."""
