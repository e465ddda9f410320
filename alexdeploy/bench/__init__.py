"""Accuracy and latency of several artifacts in one run, on the same images, with the same boundaries."""
