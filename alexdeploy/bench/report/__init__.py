"""A bench for people: table, charts, Markdown and HTML page."""
