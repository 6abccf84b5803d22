"""Loads `types` on first use, because creating its many dictionary types takes as long as importing the rest of the package."""


def __getattr__(name: str) -> object:
    from . import types

    return getattr(types, name)
