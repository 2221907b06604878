"""One run: its context, its stages in order, and the loop they share."""
