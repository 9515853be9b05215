"""What finished runs and sweeps are worth."""
