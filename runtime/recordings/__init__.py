"""Episodes that were recorded, and the formats they come in."""
