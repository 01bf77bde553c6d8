"""The network as it is deployed: static, and equal to the eager model."""
