"""Bytes, and who may send them: sockets, requests on the wire, keys, hosts, limits."""
