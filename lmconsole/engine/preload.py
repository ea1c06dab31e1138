"""What every worker needs, imported once by the process that workers are forked from.

It must neither compute nor ask for a GPU: threads do not survive a fork, and CUDA forbids it. What cannot be imported
is left to the workers, each of which says so in its own log.
"""

import contextlib

with contextlib.suppress(Exception):
    import lmconsole.engine.attempt
    import lmconsole.lm.optimizers

    lmconsole.lm.optimizers.load()
