"""The Triton kernels, one file per family: formula, kernel, configuration by architecture and shape, launcher.

Importing a family needs the `triton` package but no GPU; `kernels.dispatch` imports them only when one is to run.
"""
