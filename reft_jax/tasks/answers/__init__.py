"""Reading answers out of completions and comparing them."""
