"""Identities over time: which detections of a video are one object, and what is counted of them."""
