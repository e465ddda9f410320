"""Local response normalisation in ONNX: put back together, and written with fast operators."""
