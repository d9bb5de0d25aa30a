"""Released checkpoints, both ways: what lies in a foreign directory becomes this project's state, and back.

    source.py      tensors of a directory or file by name, read one at a time, memory-mapped
    transforms.py  how one of their arrays becomes one of ours, and back
    plan.py        rules (their name -> our path, transform), checked as a whole before anything is read
    formats.py     the table of formats; one file each holds a format's rules and its config
    write.py       streams a plan into our layout, or ours into theirs
"""
