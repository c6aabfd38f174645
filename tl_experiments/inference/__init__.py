"""A finished run put to use: predictions of new images, metrics on other data, files for other programs."""
