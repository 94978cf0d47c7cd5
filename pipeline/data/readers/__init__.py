"""One kind of data file each, found by its ending. A file here has

    read(path, source, check, problems) -> Iterator[tuple[int, dict]]

which gives the records of a file one after the other, each with its line (or its number in files without lines), and
holds no more of the file than it needs. `source` says how the file is written (header, quoting). `check(columns, line)`
raises DataError when the columns that are asked for are not there. What is wrong with one record goes into `problems`,
and the reader goes on; what is wrong with the file is a DataError.
"""
