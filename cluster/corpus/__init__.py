"""What comes in: files with images, and labelled data sets."""
