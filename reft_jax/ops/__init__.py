"""Pure mathematics on arrays: masked means, log-probs, advantages, losses."""
