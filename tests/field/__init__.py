"""Graphs in the shape of public bug reports, taken through every verb."""
