"""The rendered world: scripts of events, their pictures, their English, and the exam about them."""
