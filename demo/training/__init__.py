"""Training of the demo models on drawn images."""
