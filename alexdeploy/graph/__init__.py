"""ONNX → ONNX passes, one per file. A pass takes an ``onnx_ir.Model``, leaves it untouched and returns a new one."""
