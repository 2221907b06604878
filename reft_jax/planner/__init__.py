"""Memory and time that a run needs on hardware that is not here."""
