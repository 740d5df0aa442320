"""Raw archives of chest radiographs to checked shards."""
