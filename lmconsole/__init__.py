"""lmconsole: train, watch and compare language models from one terminal.

In notebooks and scripts, ``load_plan``, ``RunStore``, ``results`` and ``export`` give what the commands show; see
``lmconsole.api``. They are loaded when they are first used.
"""

TYPE_CHECKING = False  # type checkers know this name; importing typing takes longer than everything else here
if TYPE_CHECKING:
    from lmconsole.api import LmconsoleError, Run, RunStore, export, load_plan, results

__version__ = "0.2.0.dev0"

__all__ = ["LmconsoleError", "Run", "RunStore", "__version__", "export", "load_plan", "results"]


if not TYPE_CHECKING:  # to a type checker it would mean that every name exists

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from lmconsole import api

        return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
