"""The version; below everything, so that no module needs to import the package's face."""

__version__ = "0.1.0"
