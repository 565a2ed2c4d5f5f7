"""Kernels for the CPU in C++: the Python side here, the C++ sources in ``src``."""
