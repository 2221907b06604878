"""Problems, prompts, answers and their grading; host code without jax."""
