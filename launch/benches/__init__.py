"""What `launch.bench` measures: a file each."""
