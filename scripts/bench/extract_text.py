"""What the page of the extraction benchmark says beside its figures."""

DOC_HEAD = """# Extraction benchmark

`uv run --group bench-extract python -m scripts.bench.extract` made all figures; the lines are in `../benchmarks/extract.jsonl`.

How to read it: all clients use one emulator, in turn, on the same cores as the emulator. *Ours* verifies every page (rows
against `total`, keys, hours), stores it, syncs raw files, Parquet, manifests and the journal. *gridstatus* builds a
DataFrame in memory and writes nothing. *Bare* decompresses the same pages and discards them: the limit of `requests`.
"In the run" excludes the start of the interpreter and its imports, for every client; "whole process" includes them.
The world has no nulls (`--quirks none`): ours requests a page with nulls twice, which costs requests that peers don't spend.
"""


DOC_SHARES = """## Where the time goes

Measured apart from the figures above, in processor milliseconds of one thread for a page of 5,000 rows: read its rows as arrays and check
them 1.4 (2.1 with a JSON decoder and lists), unpack gzip 0.16 by ISA-L (0.55 by zlib), HTTP 0.5 to 0.9, of which 0.2 is urllib3 encoding the URL
again, store with fsync 0.5, its part of the piece with digest, gaps and merge 0.6. Building the series of a respondent and year takes 29, a third of
it Parquet and a third the outlier rule. Imports take 350 in the coordinator and 270 in each worker. The emulator spends 0.2 s in a run of seven
years, 2% of what ours does, once its pages are rendered: it does not limit either client.

In the run the aim was five times gridstatus at its best, which is just missed; whole process the aim was four. Before rows were read as arrays and gzip by ISA-L it was
3.46 and 3.38 times. Ours uses both cores and gridstatus about one. In a fetch alone a page takes 5.2 ms of a loaded machine, was 7.5. Not worth their
risk so far: a smaller HTTP client than requests and urllib3, and fewer syncs.

Two earlier pairs of files and API on the same day gave 1.57 and 0.91 by time and 1.57 and 1.49 by processor time: three times is missed by about half.
A file of half a year of 66 authorities, 2.2 million values, takes 1.4 s: parsing 0.5, of which 0.2 are CSV and 0.13 numbers, its piece 0.2, cutting it for builds
0.15 in each worker, and 0.25 in the coordinator, which reads and hashes the piece again. 66 builds take 2 s for a year, by files and by API alike,
so the files are not three times as fast as the API with their series: without the builds' part they would be about 1.8 times, and longer periods help a
little, since each needs one file before its first. Tried and left: numbers by Arrow's CSV reader (thousands commas), commas removed before it, rows
as a matrix by blocks, a threshold for memory maps (a third more processor time).
"""
