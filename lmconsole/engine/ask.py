"""Resolution of a request where the runs will train: on this machine, or on a node of the cluster."""

from collections.abc import Callable

from lmconsole.engine.probe import ProbeAnswer, ask_here
from lmconsole.engine.run_options import RunRequest
from lmconsole.engine.slurm.ask import ask_node, needs_node


def ask(request: RunRequest, report: Callable[[str], None] = lambda _: None) -> ProbeAnswer:
    """Resolve ``request``; ``report`` receives messages if that takes long, perhaps in a thread.

    With SLURM, a short job resolves it on a node if anything in it is ``auto``: a submit host has other devices.

    Raises LmconsoleError if the request or the machine is unsuitable.
    """
    if request.executor == "slurm" and needs_node(request):
        return ask_node(request, report)
    return ask_here(request, report)
