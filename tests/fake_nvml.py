"""Builds a fake of NVIDIA's driver library; ``fake_nvml.c`` documents the environment variables that configure it."""

import shutil
import subprocess
from pathlib import Path

import pytest


def build_fake_nvml(folder: Path) -> Path:
    """Compile ``libnvidia-ml.so.1`` and return its folder below ``folder``, for the ``LD_LIBRARY_PATH`` of a child
    process. Skips the test if there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler to build the fake of NVIDIA's driver library")
    library = folder / "fake-nvml" / "libnvidia-ml.so.1"
    library.parent.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", library, source], check=True
    )
    return library.parent
