"""
What benchmark_peers.py runs in the environment of each peer: one file per project, and the worlds and the clock they share.

``python -m peers.<name> --help``, with this folder's parent on PYTHONPATH. An adapter prints JSON lines, see ``peers.common``.
"""
