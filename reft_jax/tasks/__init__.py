"""Problems, prompts, answers and data sets: host code only, no jax."""
