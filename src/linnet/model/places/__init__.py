"""Models of the next place: the published copying networks, and the scorer of candidate visits."""
