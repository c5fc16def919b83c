"""From graded groups to a better adapter: advantages, micro-batches, loss, optimizer step, checkpoint."""
