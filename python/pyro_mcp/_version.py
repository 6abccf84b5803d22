"""The version of the package and of the executable that it needs. Made by generate.py."""

__version__ = "2.1.0"
