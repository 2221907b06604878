"""Networks as pure functions of their parameters.

This package knows nothing of training: it can be used, and read, on its own.
"""
