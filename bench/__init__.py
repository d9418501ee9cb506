"""The comparison with other forms of the same layers and models: `make bench`, `make bench-quick`."""
