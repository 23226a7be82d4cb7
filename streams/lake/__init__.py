"""The lake of Parquet day files: where it is, and how it is read and written."""
