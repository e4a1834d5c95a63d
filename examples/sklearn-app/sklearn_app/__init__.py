"""A Flower app with scikit-learn: classify its digits."""
