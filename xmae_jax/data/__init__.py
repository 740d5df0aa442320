"""From shards to batches: films, lung masks, records, order, views. Imports no model."""
