"""The train stage: an elastic ring of ranks under supervision."""
