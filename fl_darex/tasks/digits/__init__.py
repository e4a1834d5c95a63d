"""Task ``digits``: it comes with the package, data and model."""
