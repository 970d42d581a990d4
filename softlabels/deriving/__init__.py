"""Label sets written again, from sets alone: another codec, fewer entries, some records, merged."""
