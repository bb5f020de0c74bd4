"""A module in, a smaller module out, without data: walks any module, imports no method."""
