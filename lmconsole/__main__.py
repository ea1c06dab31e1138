"""``python -m lmconsole``."""

from lmconsole.cli import main

if __name__ == "__main__":
    main()
