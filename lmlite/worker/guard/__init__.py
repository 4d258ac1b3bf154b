"""What keeps a worker from harm, and others from it."""
