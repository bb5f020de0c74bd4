"""MAViL and DiffMAViL, one idea a file."""
