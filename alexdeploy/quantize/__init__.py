"""Calibration: watching activations over a data set, and turning what was seen into ranges."""
