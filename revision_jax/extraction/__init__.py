"""Features, made once and kept: of videos (video), of queries (text), of many videos by several processes (jobs) or Beam's workers (beam); and of the patch
level's few seconds (patches), made when a search asks for them."""
