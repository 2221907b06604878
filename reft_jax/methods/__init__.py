"""The training methods: each loop reads like the paper's algorithm box."""
