"""What a GPU can show, measured by one command: `scripts/gpu_evidence`."""
