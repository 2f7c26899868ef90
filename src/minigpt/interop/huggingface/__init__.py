"""Hugging Face folders: configuration, weights and names of each family, in and out."""
