"""Images with captions, cleaned as VideoLLaMA3's VL3-Syn7M was: filters, scores, near-duplicates, new captions."""
