"""Where results lie and how they get there: nothing else in the package writes a final path.

`artifacts` commits folders under a digest, `hashes` remembers the digests of large files, `remote`
copies artifacts to and from object storage, `journal` appends a stage's metrics line by line.
"""
