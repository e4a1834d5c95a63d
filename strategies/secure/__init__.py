"""The server half of secure aggregation."""
