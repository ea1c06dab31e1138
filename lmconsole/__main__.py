"""``python -m lmconsole``."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current folder, where a random.py or torch.py would hide the installed module

from lmconsole.cli import main

if __name__ == "__main__":
    main()
