"""The networks as PyTorch modules, their registry, and checkpoints that carry contract and metrics."""
