"""A Flower app in PyTorch: classify the digits of scikit-learn."""
