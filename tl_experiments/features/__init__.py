"""What a frozen prefix makes of the images: where a model can be cut, and under which key the result may be kept."""
