"""From a checkpoint to one static, verified ONNX file."""
