"""What a frozen prefix makes of images: computed once, kept as rows, trained on."""
