"""What a pretrained encoder is worth: probes, retrieval, embeddings, pictures."""
