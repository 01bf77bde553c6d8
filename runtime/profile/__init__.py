"""What each precision and backend costs, side by side, and where the time goes."""
