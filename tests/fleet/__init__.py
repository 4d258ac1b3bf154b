"""Many servers, simulated."""
