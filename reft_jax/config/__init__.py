"""The settings of a run: their schema, files, checks and command line."""
