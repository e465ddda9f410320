"""Where stages are put together: model → engine, and the whole demonstration."""
