"""Files of one model side by side: where they differ, and by how much."""
