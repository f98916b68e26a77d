"""Where engines run: ONNX Runtime on a CPU, TensorRT on a GPU."""
