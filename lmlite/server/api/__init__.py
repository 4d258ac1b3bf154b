"""The APIs: from a client's JSON to a request, and from the worker's events to the reply."""
