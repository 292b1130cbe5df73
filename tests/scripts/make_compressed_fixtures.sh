#!/bin/sh
# Writes tests/fixtures/compressed: two parts one after the other, as parallel compressors do, by zstd, bzip2 and xz; the
# Zstandard file has a skippable frame between them.
set -eu
cd "$(dirname "$0")/../fixtures/compressed"
(printf 'One.\n' | bzip2; printf 'Two.\n' | bzip2) > parts.txt.bz2
(printf 'One.\n' | xz; printf 'Two.\n' | xz) > parts.txt.xz
(printf 'One.\n' | zstd -q; printf '\120\052\115\030\003\000\000\000abc'; printf 'Two.\n' | zstd -q) > parts.txt.zst
