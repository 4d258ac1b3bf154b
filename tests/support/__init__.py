"""What tests share: fakes, writers of files, processes."""
