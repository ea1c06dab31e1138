"""Imported by the process that workers of ``host_work.py`` are forked from."""

from host_work import stub

stub()
