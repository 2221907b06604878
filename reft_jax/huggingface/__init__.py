"""The Hugging Face hub, its model folders and model cards."""
