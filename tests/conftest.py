"""Its presence puts this folder on the import path: `from zoo import zoo_network`."""
