"""What was computed before: whose cells hold which tokens, and what is kept outside of them."""
