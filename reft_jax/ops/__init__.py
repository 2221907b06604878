"""Pure functions of arrays: masked means, log-probs, advantages, losses."""
