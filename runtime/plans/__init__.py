"""TensorRT plans: compiled on the board, kept with what they were made for."""
