"""A camera, stream or video in real time, and what it is shown on."""
