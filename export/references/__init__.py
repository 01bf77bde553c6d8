"""Mask R-CNN as mmdetection and detectron2 compute it, in plain PyTorch: to be read, and what verification trusts."""
