"""One model's process: the only part of lmlite that loads the native library."""
