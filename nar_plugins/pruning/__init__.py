"""``nar-prune``: attention heads, feed-forward units and layers are removed from a trained model."""
