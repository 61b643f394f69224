"""The machine that a run uses: files, devices, processors, and the environment of a result."""
