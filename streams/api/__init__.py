"""The worker's HTTP reads: counts of one shard, summed over all shards and all workers."""
