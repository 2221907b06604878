"""What compares finished runs, on the host: suites, and ratings by people."""
