"""The real clients and agents against a real server: `make clients`."""
