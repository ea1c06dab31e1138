"""lmconsole: train, watch and compare language models from one terminal."""

__version__ = "0.2.0.dev0"
