"""The network side: sockets, requests as bytes, and access by key, host and limit."""
