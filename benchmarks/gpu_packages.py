"""Packages of the GPU benchmark: which are missing, and how to carry them to a machine without a network."""

import importlib.util
import platform
import sys
from collections.abc import Mapping

IMAGE = {
    "torch": "torch>=2.11",
    "numpy": "numpy>=1.26",
    "psutil": "psutil>=6.1",
    "safetensors": "safetensors>=0.5",
    "tokenizers": "tokenizers>=0.21.4",
    "rich": "rich>=13.9",
}
"""Packages that most PyTorch images have: module and requirement."""
CARRIED = {
    "msgspec": "msgspec>=0.19",
    "platformdirs": "platformdirs>=4.3",
    "typer": "typer>=0.15,<0.29",
    "click": "click>=8.2",
    "shellingham": "shellingham>=1.5",
    "annotated_doc": "annotated-doc>=0.0.3",
}
"""Packages that most of them lack. With ``IMAGE`` this is everything, so ``--no-deps`` can keep pip from downloading a
second torch."""
OPTIONAL = {"pynvml": "nvidia-ml-py>=12.560"}
"""Without it, memory of processes, power and energy are unknown."""
TESTS = {"pytest": "pytest", "hypothesis": "hypothesis", "pytest_timeout": "pytest-timeout"}
"""Needed by the stage ``tests`` alone, with their dependencies."""
FOLDER = "site"


def missing(packages: Mapping[str, str]) -> list[str]:
    """Return the requirements whose modules cannot be found."""
    return [requirement for module, requirement in packages.items() if importlib.util.find_spec(module) is None]


def download_command(python: str, machine: str) -> str:
    """Return the command that downloads the carried packages into a folder.

    ``python`` (3.12) and ``machine`` (x86_64) are the version and the architecture of the machine that needs them.
    """
    requirements = " ".join(f"'{requirement}'" for requirement in [*CARRIED.values(), *OPTIONAL.values()])
    return (
        f"pip install --no-deps --only-binary :all: --platform manylinux2014_{machine} --python-version {python} "
        f"--target {FOLDER} {requirements}"
    )


def missing_message(requirements: list[str]) -> str:
    """Return the message for missing ``requirements``: which they are, and how to install them."""
    lines = [f"benchmarks/gpu.py: nothing measured: packages are missing: {', '.join(requirements)}"]
    if not set(requirements).isdisjoint(IMAGE.values()):
        lines.append(f"The machine itself needs {', '.join(IMAGE)}. The other packages can be copied to it.")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return "\n".join(
        [
            *lines,
            "On a machine with a network, run:",
            f"  {download_command(python, platform.machine())}",
            f"Copy the folder {FOLDER} here, then run:",
            f"  PYTHONPATH={FOLDER} python3 benchmarks/gpu.py",
        ]
    )
