"""One set of rules for every file that comes from outside: corpora, queries, judgments, runs and logs of traffic.

The room lies in `streams` because every other package may import from there, and because what is read here ends in
events. It knows no Kafka.

| what | rule | where |
|---|---|---|
| the file | regular; plain, gzip or zstd by its first bytes; UTF-8, with or without a byte order mark | `files` |
| another kind | UTF-16, HTML, an archive or a binary is refused by its name, before anything is made of it | `files` |
| lines | 4 MiB; a longer one is no line of such a file | `files` |
| JSON | one object a line; an array is refused with how to unpack it | `json_rows` |
| CSV | the exact columns; an open quote spoils its own line, never the rest of the file | `csv_rows` |
| text | one line of visible characters, composed (NFC), cut at a length that is told | `text` |
| ids | text or a whole number, visible, 512 bytes; an absent id is absent, never "None" or "" | `values` |
| joined ids | each part escaped, so that two searches never share one | `values` |
| numbers | ranks, grades, scores and times in a range; a time without a zone is UTC | `values` |
| left out | a row that is not used is counted by reason, with the line of the first | `counts` |

Corpora, queries, judgments and runs decide a measurement, so one bad line refuses the file, by its number. A log of
traffic is as its shop wrote it: a bad row is left out and counted, and the file is refused as a whole only where most
of its rows cannot be read or none can be used.
"""
