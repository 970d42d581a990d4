"""Looking at a label set: numbers from a `LabelSet`, then pages and figures of them."""
