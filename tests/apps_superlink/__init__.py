"""The app of `test_superlink_bytes.py`: bundled by Flower and run in Flower's own processes."""
