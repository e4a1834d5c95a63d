"""What run folders show: plots now, tables and sweeps over many runs later."""
