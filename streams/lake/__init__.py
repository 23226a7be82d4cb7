"""The lake of Parquet day files: where it lies, and how it is read."""
