"""This package as the interpreter of another environment finds it through PYTHONPATH: without what is installed beside
it (see `placement.runtime_env`)."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[4])]
