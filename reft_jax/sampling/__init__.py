"""From questions to graded rollouts."""
