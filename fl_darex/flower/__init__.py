"""All that knows Flower: records, notes in messages, grids, bytes."""
