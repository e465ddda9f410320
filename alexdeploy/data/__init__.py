"""Data sets, their splits, and the one function that turns images into network input."""
