"""Fused attention: the Triton kernel, its ahead-of-time build, and the TensorRT plugin around it."""

from wnlb.plugins.library import PluginLibrary, load

__all__ = ["PluginLibrary", "load"]
