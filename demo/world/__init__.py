"""Drawn landscapes with captions and exact masks. `demo.world.scene.draw` draws one."""
