"""The commands of `fl-darex`, one file each; only they know everything."""
