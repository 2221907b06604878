"""Problems, prompts and answers, on the host alone: jax stays out."""
