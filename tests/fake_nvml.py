"""Builds the library that plays NVIDIA's driver; ``fake_nvml.c`` says what it can be told through the environment."""

import shutil
import subprocess
from pathlib import Path

import pytest


def build_fake_nvml(folder: Path) -> Path:
    """Compile ``libnvidia-ml.so.1`` into a folder of its own under ``folder`` and return that folder, to be put into
    ``LD_LIBRARY_PATH`` of a child process. Skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler to build the library that plays NVIDIA's driver")
    library = folder / "fake-nvml" / "libnvidia-ml.so.1"
    library.parent.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", library, source], check=True
    )
    return library.parent
