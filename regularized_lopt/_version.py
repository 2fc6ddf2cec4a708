"""The version, for whom the rest of the package is too much."""

__version__ = "0.1.0"
