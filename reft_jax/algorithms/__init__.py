"""The training loops of the paper, one file for each algorithm."""
