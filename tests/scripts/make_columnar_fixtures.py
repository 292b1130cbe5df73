"""Writes tests/fixtures/columnar: Parquet files by pyarrow, dataset folders by `datasets`.

    python3 -m pip install pyarrow datasets
    python3 tests/scripts/make_columnar_fixtures.py

Row i has the text "Row i.\nIt is öne of many." (null where i % 5 == 4), the list ["part i", null, "end"] (null where
i % 7 == 6), a kind out of three, a number and a struct.
"""

import pathlib

import datasets
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

ROWS = 40
OUT = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "columnar"

text = [None if i % 5 == 4 else f"Row {i}.\nIt is öne of many." for i in range(ROWS)]
parts = [None if i % 7 == 6 else [f"part {i}", None, "end"] for i in range(ROWS)]
table = pa.table(
    {
        "id": pa.array(range(ROWS), pa.int64()),
        "text": pa.array(text, pa.string()),
        "parts": pa.array(parts, pa.list_(pa.string())),
        "kind": pa.array([["news", "prose", "verse"][i % 3] for i in range(ROWS)]).dictionary_encode(),
        "meta": pa.array([{"source": f"s{i}"} for i in range(ROWS)]),
    }
)

OUT.mkdir(parents=True, exist_ok=True)
common = {"row_group_size": 15, "write_statistics": False}
pq.write_table(table, OUT / "plain.parquet", compression="none", use_dictionary=False, **common)
pq.write_table(table, OUT / "gzip.parquet", compression="gzip", use_dictionary=False, **common)
pq.write_table(table, OUT / "snappy-dictionary.parquet", compression="snappy", **common)
pq.write_table(table, OUT / "zstd-v2.parquet", compression="zstd", data_page_version="2.0", data_page_size=64, **common)
for encoding in ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"]:
    name = encoding.lower().replace("_", "-")
    pq.write_table(
        table.select(["text"]),
        OUT / f"{name}.parquet",
        compression="none",
        use_dictionary=False,
        column_encoding={"text": encoding},
        **common,
    )
large = table.select(["text", "parts"]).cast(
    pa.schema([("text", pa.large_string()), ("parts", pa.large_list(pa.large_string()))])
)
pq.write_table(large, OUT / "large.parquet", compression="zstd", **common)
feather.write_feather(table.select(["text"]), OUT / "file-format.feather", compression="uncompressed")
(OUT / "file-format.feather").rename(OUT / "file-format.arrow")

datasets.disable_progress_bars()


def dataset(rows):
    return datasets.Dataset(datasets.table.InMemoryTable(rows), fingerprint="0")


dataset(table.drop_columns(["kind", "meta"])).save_to_disk(str(OUT / "saved"), num_shards=2)
splits = {"train": dataset(table.select(["text"]).slice(0, 3)), "test": dataset(table.select(["text"]).slice(5, 2))}
datasets.DatasetDict(splits).save_to_disk(str(OUT / "splits"))
views = table.select(["text", "kind"]).set_column(0, "text", table["text"].cast(pa.string_view()))
with pa.ipc.new_stream(str(OUT / "views.arrow"), views.schema) as stream:
    stream.write_table(views, max_chunksize=15)

# Every compression of both Arrow formats and of Parquet, a column of nulls alone, and files without
# rows.
small = table.select(["text", "kind"]).append_column("nothing", pa.nulls(ROWS))
for codec in ["lz4", "zstd"]:
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.ipc.new_stream(str(OUT / f"{codec}.arrow"), small.schema, options=options) as stream:
        stream.write_table(small, max_chunksize=15)
    feather.write_feather(small, str(OUT / f"{codec}.feather"), compression=codec, chunksize=15)
for codec in ["lz4", "brotli"]:
    pq.write_table(small, OUT / f"{codec}.parquet", compression=codec, **common)
with pa.ipc.new_stream(str(OUT / "no-rows.arrow"), small.schema) as stream:
    stream.write_table(small.slice(0, 0))
pq.write_table(small.slice(0, 0), OUT / "no-rows.parquet", **common)
