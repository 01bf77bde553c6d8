"""COCO labels as people write them: each field checked, repaired where there is one way, in their own frame."""
