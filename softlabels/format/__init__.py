"""The files of a label set, as docs/FORMAT.md says: plan, shards, receipts, tables, key index."""
