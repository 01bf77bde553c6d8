"""Models on NVIDIA's Triton Inference Server: the repository that it loads, and the client that runs its models."""
