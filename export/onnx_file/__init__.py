"""The ONNX file: traced, rewritten, held to its rules, and proved equal to the eager model."""
