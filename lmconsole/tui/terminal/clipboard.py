"""The clipboard in tmux, which by default ignores what programs inside it copy by an escape sequence."""

import os
import subprocess

TIMEOUT_S = 5.0


def copy_to_tmux(text: str) -> bool:
    """Put ``text`` into a buffer of the tmux in which this process runs, which sends it on to the clipboard of the
    terminal if it may. Return False outside tmux, and if that fails."""
    if not os.environ.get("TMUX"):
        return False
    return _load_buffer(text, "-w") or _load_buffer(text)  # -w, for the terminal, since tmux 3.2


def _load_buffer(text: str, *options: str) -> bool:
    try:
        done = subprocess.run(
            ["tmux", "load-buffer", *options, "-"],
            input=text.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
