"""The machine under a run: files, devices, processors, and what a result was made with."""
