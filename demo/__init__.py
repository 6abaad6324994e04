"""A world that we draw ourselves: pictures, captions and exact masks, to see whether labels are right."""
