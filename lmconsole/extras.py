"""Optional packages, and how to install them."""

from collections.abc import Mapping
from importlib.util import find_spec

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "hub": ("huggingface_hub", "pyarrow"),
    "parquet": ("pyarrow",),
    "tensorboard": ("tensorboard",),
    "serve": ("aiohttp", "textual_serve"),
    "pictures": ("textual_image",),
}
"""Modules of each extra in pyproject.toml."""


def install_hint(extra: str) -> str:
    """Return the commands that install an extra. They name those that are there already, since uv would remove them."""
    present = [name for name, modules in EXTRAS.items() if all(find_spec(module) for module in modules)]
    if "hub" in present:
        present.remove("parquet")
    wanted = ",".join(name for name in EXTRAS if name == extra or name in present)
    return f"In the clone of lmconsole: uv tool install '.[{wanted}]'\nWith pipx: pipx install --force '.[{wanted}]'"
