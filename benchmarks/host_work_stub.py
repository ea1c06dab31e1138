"""Preloaded by the process from which the workers of ``host_work.py`` are forked."""

from host_work import replace_computation

replace_computation()
