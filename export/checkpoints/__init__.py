"""Weights as training scripts save them: read, recognised, written."""
