"""VLA-Adapter, Pro: a small language model whose every layer is read by the head that acts."""
