"""Label sets: a directory of Parquet shards that describes itself; docs/FORMAT.md specifies it."""
