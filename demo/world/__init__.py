"""Landscape pictures from a seed: see `demo.world.scene.draw`."""
