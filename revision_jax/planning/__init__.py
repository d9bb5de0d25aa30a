"""What a config would cost on hardware that is not here: the real programs, compiled ahead of time for a topology, told as a table."""
