"""What a camera saw in hours, on one page."""
