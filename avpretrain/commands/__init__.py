"""One file a verb: typed arguments to a library call to a printed answer."""
