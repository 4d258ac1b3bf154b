"""Tests of a real server with a real model, over HTTP."""
