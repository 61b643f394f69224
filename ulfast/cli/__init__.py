"""The command line. Importing it imports neither torch nor numpy; each verb is a file, loaded when it is called."""

from .main import main

__all__ = ["main"]
