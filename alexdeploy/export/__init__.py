"""Writing ONNX: from PyTorch, and from another tool's file."""
