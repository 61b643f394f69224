"""The exceptions that ulfast raises on purpose.

The command line turns an `InputError` into one line and exit code 2; anything else is our own fault
(exit code 1). Library users get ordinary exceptions: `InputError` is a `ValueError`.
"""


class InputError(ValueError):
    """What the user gave cannot be used. The message says what, where, and what to do, in one line."""


class MissingSplit(InputError):
    """The data set is there and does not have the images that were asked for: no test images, most often."""


class ExtensionError(ImportError):
    """The compiled kernels are missing or broken. Raised at the first use of a kernel, never at import."""


class WorkerError(RuntimeError):
    """One of several processes died or failed. The message names it, in one line."""
