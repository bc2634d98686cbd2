"""What networks are trained on: sources of labelled pictures and latents, the herbarium among them."""
