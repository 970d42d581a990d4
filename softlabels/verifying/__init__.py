"""Whether a label set is what was written, and by whom."""
