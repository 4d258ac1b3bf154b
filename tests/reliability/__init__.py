"""What the server promises to bear, and what shows it."""
