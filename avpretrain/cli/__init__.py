"""The front door: one file a verb. Nothing imports it but the entry points."""
