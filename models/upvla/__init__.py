"""UP-VLA: one pass of a small language model reads a picture's codes, foresees others, and acts."""
