"""One set of rules for every file that comes from outside: corpora, queries, judgments, runs and traffic logs.

The package lies in `streams` because every other package may import from there, and because its input ends in events.
It does not depend on Kafka.

| what | rule | where |
|---|---|---|
| the file | regular; plain, gzip or zstd by its first bytes; UTF-8, with or without a byte order mark | `files` |
| another kind | UTF-16, HTML, an archive or a binary is refused by its kind's name, before it is parsed | `files` |
| lines | 4 MiB; a longer line is refused | `files` |
| JSON | one object a line; an array is refused, and the message says how to unpack it | `json_rows` |
| CSV | the exact columns; an open quote spoils its own line, never the rest of the file | `csv_rows` |
| text | one line of visible characters, composed (NFC), cut at a length that is reported | `text` |
| ids | text or a whole number, visible, 512 bytes; an absent id is absent, never "None" or "" | `values` |
| joined ids | each part escaped, so that two searches never share one | `values` |
| numbers | ranks, grades, scores and times in a range; a time without a zone is UTC | `values` |
| left out | an unused row is counted by reason, with the line of the first one | `counts` |

Corpora, queries, judgments and runs decide a measurement. One bad line therefore refuses the file, and the error names
the line. A shop writes its own traffic log, which may have bad rows: a bad row is left out and counted. The whole log
is refused only if most of its rows cannot be read or none can be used.
"""
