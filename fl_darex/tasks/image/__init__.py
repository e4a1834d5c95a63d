"""Task ``image-classification``: images, and a vision model."""
