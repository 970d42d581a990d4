"""Loading: records in a reproducible order, joined to inputs, padded into batches."""
