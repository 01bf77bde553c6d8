"""Segmentation files of other tools, made files of ours: recognised, framed, verified against the original."""
