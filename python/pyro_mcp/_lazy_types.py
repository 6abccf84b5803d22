"""`types`, loaded when something of it is looked up: making its many dictionaries takes as long as the rest of the package."""


def __getattr__(name: str) -> object:
    from . import types

    return getattr(types, name)
