"""The exceptions that ulfast raises on purpose.

The command line turns an `InputError` into one line and exit code 2; anything else is our own fault
(exit code 1). Library users get ordinary exceptions: `InputError` is a `ValueError`.
"""


class InputError(ValueError):
    """The user's input cannot be used. The one-line message says what is wrong, where, and what to do."""


class MissingSplit(InputError):
    """The data set exists but lacks the requested images, most often the test images."""


class ExtensionError(ImportError):
    """The compiled kernels are missing or broken. Raised at the first use of a kernel, never at import."""


class WorkerError(RuntimeError):
    """One of several processes died or failed. The one-line message names it."""
