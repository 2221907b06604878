"""Hugging Face folders: configs and weights in and out, by family."""
