"""Engines of TensorRT and TensorRT-RTX: built, described, opened and run."""
