"""Label sets between people: the Hugging Face Hub, and the layouts of other tools."""
