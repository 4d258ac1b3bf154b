"""The endpoints of llama.cpp's server that other APIs do not have."""
