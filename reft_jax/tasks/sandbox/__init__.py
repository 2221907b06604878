"""Running untrusted programs that a policy writes. Start at executor.py."""
