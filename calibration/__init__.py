"""Low-light images: made, measured, evaluated."""
