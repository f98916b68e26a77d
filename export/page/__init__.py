"""The page of an export, whether it passed or failed."""
