"""What a person looks at: the timeline picture and the search page."""
