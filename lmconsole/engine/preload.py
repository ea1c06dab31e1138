"""Imports that every worker needs, done once in the process that workers are forked from.

That process must not compute or query a GPU: threads do not survive a fork, and neither does CUDA. What cannot be
imported here is left to the workers, each of which reports it in its own log.
"""

import contextlib

with contextlib.suppress(Exception):
    import lmconsole.engine.attempt
    import lmconsole.engine.provenance
    import lmconsole.lm.optimizers

    lmconsole.lm.optimizers.load()
    lmconsole.engine.provenance.code_sha256()  # of the code that workers have, whatever becomes of the files later
