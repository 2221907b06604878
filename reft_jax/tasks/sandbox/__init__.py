"""Running the programs that a policy writes, without trusting them.

Start at executor.py.
"""
