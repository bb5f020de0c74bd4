"""What an active speaker detector is worth: on sets of face tracks, and at work on a video or a camera."""
