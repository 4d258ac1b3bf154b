"""Views of a running server: metrics, counts, the log stream."""
