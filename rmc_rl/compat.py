"""
Interfaces of dependencies that are not public, in one place.

A new version of a dependency may move or remove them. So each is looked up when it is needed, and each has a fallback that
keeps the program correct, if slower or less convenient. ``tests/test_compat.py`` holds both.
"""
