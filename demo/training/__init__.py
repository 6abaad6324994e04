"""Training of the demo models on the drawn world."""
