"""Building engines with TensorRT or TensorRT-RTX, and reading what was built."""
