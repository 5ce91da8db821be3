"""The file formats of data that alignkit comes with."""

from alignkit import DataFormat

from alignkit_formats.readers import read_arrow, read_csv, read_json, read_jsonl, read_parquet, read_text

JSONL = DataFormat(read_jsonl, gzipped=True)
JSON = DataFormat(read_json, gzipped=True, splits=True)
CSV = DataFormat(read_csv, gzipped=True, delimited=True)
TEXT = DataFormat(read_text, gzipped=True)
PARQUET = DataFormat(read_parquet)
ARROW = DataFormat(read_arrow)
