"""The schema, the strict reader, and schedules. Nothing here imports torch."""
