"""Flower's example apps on local data: the rows, the data, the two lines, one run."""
