"""The CUDA device: memory, streams and graphs, through PyCUDA or cuda-python."""
