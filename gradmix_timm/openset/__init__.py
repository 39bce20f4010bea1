"""Open set evaluation: `metrics`, `scores`, `reports`; embeddings and judgements beside them."""
