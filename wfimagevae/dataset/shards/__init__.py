"""WebDataset shards: which are meant, fetched, indexed, read by position, and written."""
