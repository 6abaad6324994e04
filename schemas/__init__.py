"""What goes over the wire and onto disk."""
