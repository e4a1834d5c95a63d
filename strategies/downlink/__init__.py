"""How the model goes to the clients."""
