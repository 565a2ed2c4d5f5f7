"""Worlds, one per file. The docstring of a world is its page."""
