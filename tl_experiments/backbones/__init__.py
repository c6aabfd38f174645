"""Pretrained networks behind one face: features, ordered blocks, preprocessing, weights that are accounted for."""
