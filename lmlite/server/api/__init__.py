"""The APIs: a client's JSON to a request, and the worker's events to the reply."""
