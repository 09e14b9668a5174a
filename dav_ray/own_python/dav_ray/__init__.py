"""This package as the interpreter of another environment finds it through PYTHONPATH: without what is installed beside
it (see `session._own_python`)."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2])]
