"""What can be trained, one folder a paper."""
