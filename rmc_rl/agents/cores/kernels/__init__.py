"""Fused kernels of the cores; :mod:`~rmc_rl.agents.cores.kernels.dispatch` chooses one."""
