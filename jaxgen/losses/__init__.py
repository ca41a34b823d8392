"""Pure objectives, one file a family. Arrays in, one value per example ``[B]`` out."""
