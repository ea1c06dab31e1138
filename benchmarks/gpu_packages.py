"""The packages that the GPU benchmark needs, which of them are missing, and how to carry them to a bare machine."""

import importlib.util
import platform
import sys
from collections.abc import Mapping

IMAGE = {
    "torch": "torch>=2.11",
    "numpy": "numpy>=1.26",
    "psutil": "psutil>=6.1",
    "safetensors": "safetensors>=0.5",
    "tokenizers": "tokenizers>=0.21",
    "rich": "rich>=13.9",
}
"""What an image for PyTorch mostly has: module and requirement."""
CARRIED = {
    "msgspec": "msgspec>=0.19",
    "platformdirs": "platformdirs>=4.3",
    "typer": "typer>=0.15,<0.29",
    "click": "click>=8.2",
    "shellingham": "shellingham>=1.5",
    "annotated_doc": "annotated-doc>=0.0.3",
}
"""What it mostly lacks. Together with ``IMAGE`` this is everything; ``--no-deps`` keeps a second torch from coming."""
USEFUL = {"pynvml": "nvidia-ml-py>=12.560"}
"""The benchmark runs without, and then knows no memory of processes, no power and no energy."""
TESTS = {"pytest": "pytest", "hypothesis": "hypothesis", "pytest_timeout": "pytest-timeout"}
"""For the stage ``tests`` alone, with what they depend on."""
FOLDER = "site"


def missing(packages: Mapping[str, str]) -> list[str]:
    """Return the requirements whose modules cannot be found."""
    return [requirement for module, requirement in packages.items() if importlib.util.find_spec(module) is None]


def carry_command(python: str, machine: str) -> str:
    """Return the command that fills a folder with everything to carry, on a machine that has a network, for the version
    ``python`` (3.12) and the processor ``machine`` (x86_64) of one that has none."""
    words = " ".join(f"'{requirement}'" for requirement in [*CARRIED.values(), *USEFUL.values()])
    return (
        f"pip install --no-deps --only-binary :all: --platform manylinux2014_{machine} --python-version {python} "
        f"--target {FOLDER} {words}"
    )


def explain(requirements: list[str]) -> str:
    """Return what to say where ``requirements`` are missing: which, and how to bring them."""
    lines = [f"benchmarks/gpu.py: nothing was measured, because packages are missing: {', '.join(requirements)}"]
    if not set(requirements).isdisjoint(IMAGE.values()):
        lines.append(f"The machine itself should have {', '.join(IMAGE)}. The others can be carried here.")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return "\n".join(
        [
            *lines,
            "On a machine with a network:",
            f"  {carry_command(python, platform.machine())}",
            f"Copy the folder {FOLDER} here, then run:",
            f"  PYTHONPATH={FOLDER} python3 benchmarks/gpu.py",
        ]
    )
