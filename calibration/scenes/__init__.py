"""Labelled dark pictures: night scenes that are drawn, and daylight sets rendered dark."""
