"""The learner: what the jitted updates compute, and their state."""
