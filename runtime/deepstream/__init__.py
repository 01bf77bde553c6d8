"""A model for NVIDIA DeepStream: the file that its Gst-nvinfer feeds, and what tells Gst-nvinfer how."""
