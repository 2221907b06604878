"""The machine: mesh, processes, checkpoints, metrics, console, plots."""
