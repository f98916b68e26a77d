"""One engine of the split: traced, lowered, written, audited, compiled."""
