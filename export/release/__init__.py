"""From a bundle to a release: signed, and brought to a board."""
