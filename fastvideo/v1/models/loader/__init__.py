"""From a checkpoint directory to modules."""
