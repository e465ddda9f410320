"""One runner per runtime behind one contract (``base.Runner``)."""
