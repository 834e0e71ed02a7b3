"""Images on disk: found, decoded, cropped, sorted into buckets, with their classes."""
