"""From frames to detections, and how fast; needs neither PyTorch nor ONNX."""
