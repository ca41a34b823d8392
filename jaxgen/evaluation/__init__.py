"""Numbers with their protocol: distances between sets of images, and what they are measured on."""
