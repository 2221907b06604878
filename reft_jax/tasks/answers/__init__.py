"""Reading answers from completions and comparing them with references."""
