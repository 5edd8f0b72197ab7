"""Many samples to disk: resumable jobs of shards."""
