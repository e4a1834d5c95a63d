"""What a client sends: what is asked, how it is made, and what came."""
