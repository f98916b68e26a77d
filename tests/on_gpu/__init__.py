"""The runtime on a real CUDA driver, without TensorRT.

TensorRT for RTX refuses some GPUs that one can get hold of (SM 9.0: an H100, an H200), and there is
no other TensorRT in a wheel. What these tests are for needs none: streams, events, copies, captured
graphs and memory are the real driver's, called by `runtime.backends` as on a robot. Only
`tensorrt` is a stand-in, whose contexts enqueue torch's kernels on the stream that they are given.

`make test-gpu` runs them; where no GPU answers it says so and fails. `make bench-gpu` times them.
"""
