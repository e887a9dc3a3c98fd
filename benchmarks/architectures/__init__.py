"""Small networks of every architecture that we could think of, each sent through the command line.

They are written after the papers' descriptions, scaled down in width and depth to seconds on one
core, with the full variety of operators kept. One file a family; ``table.py`` has them all.
"""
