"""Comparisons of finished runs, on the host: suites and human ratings."""
