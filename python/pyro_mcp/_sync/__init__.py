"""The asynchronous half of the package. generate.py generates `_sync` from it."""
