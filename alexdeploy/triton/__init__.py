"""A model repository of Triton Inference Server: written, checked, and what its Python backend runs."""
