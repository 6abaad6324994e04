"""What goes out: the output folder, its rows, and how a run that was cut off continues."""
