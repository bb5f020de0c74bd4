"""What happens in a synthetic scene (`impacts`, `rolling`), how it sounds (`sound`) and how it looks (`picture`)."""
