"""Making data sets of face tracks: from tables and videos, or synthetic."""
