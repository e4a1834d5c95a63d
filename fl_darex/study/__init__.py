"""What run folders show, and the figures of the theory: plots now, sweeps and tables later."""
