"""From files to batches: reading rows, encoding, the cache on disk, packing and layouts."""
