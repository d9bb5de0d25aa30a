"""Free-form answers about images and videos, over several turns: VideoLLaMA3 as its users know it."""
