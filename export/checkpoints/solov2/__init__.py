"""Checkpoints of SOLOv2: their names, settings and configurations, and the network that they make."""
